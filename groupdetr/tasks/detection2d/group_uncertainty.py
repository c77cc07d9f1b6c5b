"""The uncertainty of the detections of one group, from those of all groups in the same image."""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.analysis.group_uncertainty import GroupUncertainty, group_uncertainty
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.group_detections import best_of_each_group


def uncertainty_of(
    detections: Detections, groups: Sequence[Detections], answering: int | None
) -> GroupUncertainty:
    """Return the uncertainty of ``detections`` of the group ``answering``.

    They are compared with those of the other groups; with those of all groups if ``answering`` is
    None, as for fused detections.

    ``groups`` are all detections of each of the K groups, whatever their score. The detections of
    another group belong to these as in `best_of_each_group`: one-to-one, of the same class, with an
    IoU of at least 0.5. `group_uncertainty` defines the uncertainty.
    """
    others = [of_one for group, of_one in enumerate(groups) if group != answering]
    matched = best_of_each_group(detections, others)
    return group_uncertainty(
        detections.scores.double().numpy(),
        detections.boxes.double().numpy(),
        matched.scores,
        matched.boxes,
    )
