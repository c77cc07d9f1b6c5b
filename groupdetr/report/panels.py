"""Images of a report: the ground truth next to detections, and the queries of every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from groupdetr.console.text import quantity
from groupdetr.report.page import CaptionedImage, Html, gallery, join, strips, swatches
from groupdetr.structures.detections import Detections
from groupdetr.visualize.images import draw_detections, draw_groups, palette, scale_for

MATCH_IOU = 0.5  # an object counts as detected from this IoU with a detection of its class


@dataclass(frozen=True)
class DetectionPanel:
    """One image, its ground truth, and the detections of several detectors."""

    image: Image.Image
    target: Detections  # its scores are not shown
    # name of a detector -> its detections, sorted by decreasing score
    detections: Mapping[str, Detections]


@dataclass(frozen=True)
class GroupPanel:
    """One image with T of its objects and the K queries matched to each, in pixels (Fig. 3)."""

    image: Image.Image
    object_boxes: ArrayLike  # [T,4] x0,y0,x1,y1
    group_boxes: ArrayLike  # [T,K,4]; nan where a group has no match
    group_points: ArrayLike  # [T,K,2] reference points x,y
    caption: str = ""


def detection_strips(panels: Sequence[DetectionPanel], class_names: Sequence[str]) -> Html:
    """Return one row of images for each panel: the ground truth, then each detector's detections.

    For an image with T objects, the T best detections are drawn. A common score threshold would
    favour the detector with the higher scores; this compares only how detections are ranked.
    """
    return strips([_panel_images(panel, class_names) for panel in panels])


def group_gallery(panels: Sequence[GroupPanel]) -> Html:
    """Return the images of matched queries with a legend of the groups."""
    num_groups = 0
    for panel in panels:
        num_groups = max(num_groups, np.asarray(panel.group_boxes).shape[1])
    return join([group_legend(num_groups), gallery([_group_image(panel) for panel in panels])])


def group_legend(num_groups: int) -> Html:
    """Return the legend of the colours of the groups."""
    entries = []
    for group in range(num_groups):
        red, green, blue = palette(group)
        entries.append((f"rgb({red},{green},{blue})", f"group {group}"))
    return swatches(entries)


def count_detected(target: Detections, detections: Detections) -> int:
    """Return how many objects of ``target`` are matched by a detection of their class."""
    return int(is_detected(target, detections).sum())


def is_detected(target: Detections, detections: Detections) -> NDArray[np.bool_]:
    """Return for each of the T objects of ``target`` if a detection of its class is matched to it.

    A detection is matched to at most one object, and an object to at most one detection.
    Detections with higher scores are matched first.
    """
    unmatched = list(range(len(target)))
    detected = np.zeros(len(target), dtype=bool)
    for label, ious in zip(detections.labels, detections.iou(target)):
        candidates = [index for index in unmatched if target.labels[index] == label]
        if not candidates:
            continue
        best = max(candidates, key=lambda index: ious[index])
        if ious[best] >= MATCH_IOU:
            unmatched.remove(best)
            detected[best] = True
    return detected


def _panel_images(panel: DetectionPanel, class_names: Sequence[str]) -> list[CaptionedImage]:
    num_objects = len(panel.target)
    scale = scale_for(panel.image)
    names = [class_names[int(label)] for label in panel.target.labels]
    drawn_target = draw_detections(panel.image, panel.target, names, scale)
    images = [CaptionedImage(drawn_target, "Ground truth", quantity(num_objects, "object"))]
    for detector, detections in panel.detections.items():
        best = detections[:num_objects]
        labels = []
        for label, score in zip(best.labels, best.scores):
            labels.append(f"{class_names[int(label)]} {score:.2f}")
        annotated = draw_detections(panel.image, best, labels, scale)
        caption = ""
        if num_objects:
            caption = f"{count_detected(panel.target, best)} of {num_objects} detected"
        images.append(CaptionedImage(annotated, detector, caption))
    return images


def _group_image(panel: GroupPanel) -> CaptionedImage:
    scale = scale_for(panel.image, side=760)
    annotated = draw_groups(
        panel.image, panel.object_boxes, panel.group_boxes, panel.group_points, scale
    )
    return CaptionedImage(annotated, caption=panel.caption)
