"""The uncertainty of a detection, from what the groups say about the same object.

K groups are K detectors that share all weights but their queries. Where the image leaves no doubt,
they return the same box with the same score. One forward pass with all groups is therefore an
ensemble, at the cost of K decoders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from groupdetr.analysis.paired_iou import paired_iou


@dataclass(frozen=True)
class GroupUncertainty:
    """How uncertain D detections are, and how much the groups disagree about them."""

    # [D] in [0,1]: 1 minus the mean over all groups of score times IoU. It is 1 minus the score if
    # all groups agree.
    total: NDArray[np.float64]
    # [D] in [0,1]: the spread of boxes and scores alone. It is 0 if all groups agree, whatever the
    # score is, and 1 if no other group detects the object.
    disagreement: NDArray[np.float64]


def group_uncertainty(
    scores: ArrayLike, boxes: ArrayLike, group_scores: ArrayLike, group_boxes: ArrayLike
) -> GroupUncertainty:
    """Return the uncertainty of the D detections of one group.

    ``scores`` [D] and ``boxes`` [D,4] are those of the detections. ``group_scores`` [D,G] and
    ``group_boxes`` [D,G,4] are those of the same object in the G other groups, and nan where a
    group does not detect it. Boxes are x0, y0, x1, y1.

    What another group confirms is its score times the IoU of the two boxes, and 0 if it does not
    detect the object. The total uncertainty is 1 minus the mean of what all groups confirm, the
    detection's own score among them.

    The agreement with another group is the IoU of the two boxes, times the lower of the two scores
    divided by the higher one, and 0 if it does not detect the object. The disagreement is 1 minus
    the mean agreement with the other groups. `ValueError` if there is no other group.

    >>> detection, none = [0, 0, 10, 10], [np.nan] * 4
    >>> group_uncertainty([0.8], [detection], [[0.4, np.nan]], [[detection, none]])
    GroupUncertainty(total=array([0.6]), disagreement=array([0.75]))
    """
    own_scores = np.asarray(scores, float)[:, None]  # [D,1]
    other_scores = np.asarray(group_scores, float)  # [D,G]
    num_others = other_scores.shape[1]
    if num_others == 0:
        raise ValueError("the uncertainty of a detection needs another group")
    ious = paired_iou(np.asarray(boxes, float)[:, None], group_boxes)  # [D,G]
    is_missing = np.isnan(other_scores)
    confirmed = np.where(is_missing, 0.0, ious * other_scores).sum(axis=1)
    total = 1 - (own_scores[:, 0] + confirmed) / (1 + num_others)

    higher = np.maximum(own_scores, other_scores)
    lower = np.minimum(own_scores, other_scores)
    ratio = np.divide(lower, higher, out=np.ones_like(higher), where=higher != 0)
    agreement = np.where(is_missing, 0.0, ious * ratio)
    return GroupUncertainty(total.clip(0, 1), (1 - agreement.mean(axis=1)).clip(0, 1))
