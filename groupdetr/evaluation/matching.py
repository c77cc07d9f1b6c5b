"""Which detection detects which object, at an IoU of 0.5, as the COCO evaluation decides it.

The evaluators do not report their matches in this form, so they are computed again here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from groupdetr.data.records import CocoSplit, Record
from groupdetr.structures.detections import Detections

MATCH_IOU = 0.5
MAX_DETECTIONS = 100  # of one class in one image that are evaluated, those with the highest scores
# Values of `ImageMatches.object` that are not the index of an object.
NO_OBJECT = -1  # a false positive
IGNORED = -2  # the detection lies in a crowd, or is not among the evaluated ones


@dataclass(frozen=True)
class ImageMatches:
    """The matches of the D detections and the T annotations of one image."""

    object: NDArray[np.int64]  # [D] index of the detected annotation, `NO_OBJECT` or `IGNORED`
    ious: NDArray[np.float64]  # [D,T]; with a crowd, the part of the detection that lies in it


def match_image(record: Record, detections: Detections, kind: str = "box") -> ImageMatches:
    """Match the detections of one image to its objects, as COCO's evaluation at an IoU of 0.5.

    Detections are matched by decreasing score, each to the object of its class that is not yet
    detected and has the largest IoU with it, of at least 0.5. A detection that has no such object,
    but at least half of which lies in a crowd of its class, is ignored. ``kind`` is what the IoU is
    computed of, "box" or "mask".
    """
    labels = detections.labels.numpy()
    ious = image_ious(record, detections, kind)
    is_candidate = (ious >= MATCH_IOU) & (labels[:, None] == record.labels[None])
    crowd = record.crowd
    matched = np.full(len(detections), NO_OBJECT, dtype=np.int64)
    is_free = ~crowd
    # A stable sort keeps the order of detections with equal scores, as pycocotools does.
    by_score = np.argsort(-detections.scores.numpy(), kind="stable")
    matched[by_score[_rank_in_class(labels[by_score]) >= MAX_DETECTIONS]] = IGNORED
    for index in by_score[is_candidate[by_score].any(axis=1)]:
        if matched[index] == IGNORED:
            continue
        objects = np.flatnonzero(is_candidate[index] & is_free)
        if len(objects):
            # Of several objects with the same IoU, pycocotools takes the last one.
            best = objects[len(objects) - 1 - np.argmax(ious[index, objects][::-1])]
            matched[index] = best
            is_free[best] = False
        elif (is_candidate[index] & crowd).any():
            matched[index] = IGNORED
    return ImageMatches(matched, ious)


def image_ious(record: Record, detections: Detections, kind: str) -> NDArray[np.float64]:
    """Return the IoU of all detections with all annotations of an image: [D,T].

    With a crowd it is the part of the detection that lies in the crowd, as COCO defines it.
    """
    if len(detections) == 0 or len(record.labels) == 0:
        return np.zeros((len(detections), len(record.labels)))
    is_crowd = record.crowd.astype(np.uint8).tolist()
    if kind == "mask":
        if detections.masks is None or record.segmentations is None:
            raise ValueError("detections and objects need masks")
        masks = [part.to_rle(record.height, record.width) for part in record.segmentations]
        return np.asarray(coco_mask.iou(list(detections.masks), masks, is_crowd))
    return np.asarray(coco_mask.iou(detections.xywh(), record.boxes, is_crowd))


def _rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many earlier detections have the same label, for each detection [D]."""
    # A stable sort puts equal labels together, in their order.
    order = np.argsort(labels, kind="stable")
    sorted_labels = labels[order]
    first = np.searchsorted(sorted_labels, sorted_labels)  # of the same label
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - first
    return ranks


def image_numbers(split: CocoSplit) -> list[int]:
    """Return a number 1..n for each record, in the order of the original ids.

    pycocotools sorts images by id, and this order ranks detections of equal score.
    """
    original = [record.image_id for record in split.records]
    records = range(len(original))
    try:
        order = sorted(records, key=lambda record: original[record])
    except TypeError:  # Numbers and strings cannot be sorted together: keep the order of the file.
        order = list(records)
    image_ids = [0] * len(original)
    for image_id, record in enumerate(order, 1):
        image_ids[record] = image_id
    return image_ids
