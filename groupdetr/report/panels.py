"""Pictures of a report: what is there beside what was found, and the queries of every group on one object (Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from groupdetr.report.page import Html, Picture, gallery, join, strips, swatches
from groupdetr.structures.detections import Detections
from groupdetr.visualize.images import draw_found, draw_groups, palette, scale_for

FOUND_IOU = 0.5  # an object counts as found by a detection of its class that overlaps it this much


@dataclass(frozen=True)
class DetectionPanel:
    """One picture, its objects, and what each of several detectors found in it."""

    image: Image.Image
    truth: Detections  # scores are not shown
    found: Mapping[str, Detections]  # name of a detector -> its detections, by falling score


@dataclass(frozen=True)
class GroupPanel:
    """One picture with T of its objects and the K queries matched to each, in pixels."""

    image: Image.Image
    object_boxes: ArrayLike  # [T,4] x0,y0,x1,y1
    group_boxes: ArrayLike  # [T,K,4]; nan where a group has no match
    group_points: ArrayLike  # [T,K,2] reference points x,y
    caption: str = ""


def detection_strips(panels: Sequence[DetectionPanel], class_names: Sequence[str]) -> Html:
    """A row for each picture. Of a picture with T objects the T best detections are drawn.

    A common score threshold would flatter whichever detector is the more confident; this compares rankings.
    """
    return strips([_row(panel, class_names) for panel in panels])


def group_gallery(panels: Sequence[GroupPanel]) -> Html:
    groups = max((np.asarray(panel.group_boxes).shape[1] for panel in panels), default=0)
    return join([group_legend(groups), gallery([_group_picture(panel) for panel in panels])])


def group_legend(groups: int) -> Html:
    return swatches(
        [("rgb({},{},{})".format(*palette(k)), f"group {k + 1}") for k in range(groups)]
    )


def found(truth: Detections, detections: Detections) -> int:
    """How many objects are found, each by one detection, the best ones choosing first."""
    free = list(range(len(truth)))
    hits = 0
    for label, iou in zip(detections.labels, detections.iou(truth)):
        overlaps = {i: iou[i] for i in free if truth.labels[i] == label}
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= FOUND_IOU:
            free.remove(best)
            hits += 1
    return hits


def _row(panel: DetectionPanel, class_names: Sequence[str]) -> list[Picture]:
    count = len(panel.truth)
    names = [class_names[int(label)] for label in panel.truth.labels]
    scale, caption = scale_for(panel.image), f"{count} object{'s' * (count != 1)}"
    pictures = [Picture(draw_found(panel.image, panel.truth, names, scale), "Truth", caption)]
    for name, detections in panel.found.items():
        best = detections[:count]
        captions = [
            f"{class_names[int(label)]} {score:.2f}"
            for label, score in zip(best.labels, best.scores)
        ]
        caption = f"{found(panel.truth, best)} of {count} found" if count else ""
        pictures.append(Picture(draw_found(panel.image, best, captions, scale), name, caption))
    return pictures


def _group_picture(panel: GroupPanel) -> Picture:
    scale = scale_for(panel.image, side=760)
    drawn = draw_groups(
        panel.image, panel.object_boxes, panel.group_boxes, panel.group_points, scale
    )
    return Picture(drawn, caption=panel.caption)
