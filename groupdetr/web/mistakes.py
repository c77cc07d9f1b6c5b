"""The errors of a detector in a split at any score threshold, fast enough for a slider.

The numbers are those of `evaluation/error_analysis.py`, which computes them at one threshold. Here,
all detections and objects of a split are in arrays, and a threshold only selects from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.records import CocoSplit
from groupdetr.evaluation.matching import MATCH_IOU, NO_OBJECT, ImageMatches
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject

KINDS = ("false_positive", "missed", "confused")
FALSE_POSITIVE, MISSED, CONFUSED = range(3)  # indices into `KINDS`
NO_LABEL = -1  # there is no object, or no detection

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Mistake:
    """One error."""

    image: int  # index of the record
    kind: str  # one of `KINDS`
    box: list[float]  # x0, y0, x1, y1 in pixels: of the detection, or of the missed object
    # Of the detection. For a missed object, the highest score of a detection of it, which is below
    # the threshold; 0 if there is none.
    score: float
    iou: float  # of the detection with an object, the largest one; 0 for a missed object
    object: int | None  # label of the object, None if there is none
    detection: int | None  # label of the detection, None if there is none

    def to_json(self) -> JsonObject:
        """Return the error as plain data."""
        return {
            "image": self.image,
            "kind": self.kind,
            "box": [round(coordinate, 2) for coordinate in self.box],
            "score": round(self.score, 6),
            "iou": round(self.iou, 4),
            "object": self.object,
            "detection": self.detection,
        }


@dataclass(frozen=True)
class Mistakes:
    """M errors and D' detected objects at one score threshold, in the order of the page.

    Detections come with decreasing score. Missed objects come with increasing score, so those that
    nothing was detected of are first. Of equal scores, the largest box is first.
    """

    kind: Ints  # [M] index into `KINDS`
    image: Ints  # [M] index of the record
    box: Floats  # [M,4] x0, y0, x1, y1 in pixels
    score: Floats  # [M] as in `Mistake`
    iou: Floats  # [M]
    object: Ints  # [M] label, or `NO_LABEL`
    detection: Ints  # [M] label, or `NO_LABEL`
    detected_image: Ints  # [D'] index of the record of each object that is detected
    detected_label: Ints  # [D']

    def __len__(self) -> int:
        return len(self.kind)

    def of_class(self, label: int | None) -> Mistakes:
        """Return the errors with an object or a detection of a class. None: of all classes."""
        if label is None:
            return self
        is_of_class = (self.object == label) | (self.detection == label)
        is_detected = self.detected_label == label
        return self.select(is_of_class, is_detected)

    def of_kind(self, kind: str) -> Mistakes:
        """Return the errors of one kind. `ValueError` if there is no such kind."""
        is_kind = self.kind == KINDS.index(kind)
        return self.select(is_kind, np.zeros(len(self.detected_label), dtype=bool))

    def select(self, errors: Bools | Ints, detected: Bools | slice) -> Mistakes:
        """Return some of the errors and detected objects, by a bool for each or by indices."""
        return Mistakes(
            self.kind[errors],
            self.image[errors],
            self.box[errors],
            self.score[errors],
            self.iou[errors],
            self.object[errors],
            self.detection[errors],
            self.detected_image[detected],
            self.detected_label[detected],
        )

    def items(self, start: int = 0, count: int | None = None) -> list[Mistake]:
        """Return ``count`` errors from the index ``start`` on, or all of them."""
        stop = len(self) if count is None else start + count
        return [
            Mistake(
                image=int(self.image[index]),
                kind=KINDS[self.kind[index]],
                box=self.box[index].tolist(),
                score=float(self.score[index]),
                iou=float(self.iou[index]),
                object=_label(self.object[index]),
                detection=_label(self.detection[index]),
            )
            for index in range(start, min(stop, len(self)))
        ]

    def summary(self) -> JsonObject:
        """Return the number of errors of each kind, and precision, recall and F1.

        They are counted over objects, as the best F1 of a run is. None where nothing is counted.
        """
        false_positives, missed, confused = np.bincount(self.kind, minlength=len(KINDS)).tolist()
        detected = len(self.detected_label)
        num_detections = detected + false_positives + confused
        num_objects = detected + missed + confused
        total = num_detections + num_objects
        return {
            "detected": detected,
            "false_positive": false_positives,
            "missed": missed,
            "confused": confused,
            "precision": detected / num_detections if num_detections else None,
            "recall": detected / num_objects if num_objects else None,
            "F1": 2 * detected / total if total else None,
        }


class MistakeTable:
    """All D detections and T objects of a split, and which belong together.

    Detections that are ignored, such as those in crowds, and crowds are left out.
    """

    def __init__(
        self, split: CocoSplit, detections: Sequence[Detections], matches: Sequence[ImageMatches]
    ) -> None:
        images, scores, labels, boxes, objects, ious = [], [], [], [], [], []
        object_images, object_labels, corners = [], [], []
        pairs, pair_ious = [], []
        num_detections = num_objects = 0
        for index, (record, of_image, match) in enumerate(
            zip(split.records, detections, matches, strict=True)
        ):
            is_counted = match.object >= NO_OBJECT
            is_object = ~record.crowd
            number_of_object = np.cumsum(is_object) - 1 + num_objects
            number_of_detection = np.cumsum(is_counted) - 1 + num_detections
            matched = match.object[is_counted]
            has_object = matched > NO_OBJECT
            images.append(np.full(int(is_counted.sum()), index))
            scores.append(of_image.scores.double().numpy()[is_counted])
            labels.append(of_image.labels.numpy()[is_counted])
            boxes.append(of_image.boxes.double().numpy().reshape(-1, 4)[is_counted])
            of_objects = np.full(len(matched), NO_OBJECT)
            of_objects[has_object] = number_of_object[matched[has_object]]
            objects.append(of_objects)
            ious.append(match.ious.max(axis=1, initial=0.0)[is_counted])
            object_images.append(np.full(int(is_object.sum()), index))
            object_labels.append(record.labels[is_object])
            corners.append(record.corners[is_object])
            # Only a detection without an object can be the confusion of another one.
            is_pair = (match.ious >= MATCH_IOU) & (match.object == NO_OBJECT)[:, None] & is_object
            rows, columns = np.nonzero(is_pair)
            pairs.append(np.stack([number_of_detection[rows], number_of_object[columns]], axis=1))
            pair_ious.append(match.ious[rows, columns])
            num_detections += int(is_counted.sum())
            num_objects += int(is_object.sum())
        self.image: Ints = _join(images, int)
        self.score: Floats = _join(scores, float)
        self.label: Ints = _join(labels, int)
        self.box: Floats = _join(boxes, float).reshape(-1, 4)
        self.object: Ints = _join(objects, int)  # [D] index of the detected object, or `NO_OBJECT`
        self.iou: Floats = _join(ious, float)  # [D] the largest one with an object
        self.object_image: Ints = _join(object_images, int)
        self.object_label: Ints = _join(object_labels, int)
        self.object_box: Floats = _join(corners, float).reshape(-1, 4)
        # The score of the detection of each object: it is detected up to this threshold.
        self.object_score: Floats = np.full(num_objects, -np.inf)
        is_match = self.object > NO_OBJECT
        self.object_score[self.object[is_match]] = self.score[is_match]
        # [P,2] detection and object at the same place. The largest IoU is first, and of equal ones
        # the order is that of the analysis.
        unsorted = _join(pairs, int).reshape(-1, 2)
        self.pair_iou: Floats = _join(pair_ious, float)
        order = np.argsort(-self.pair_iou, kind="stable")
        self.pairs: Ints = unsorted[order]
        self.pair_iou = self.pair_iou[order]

    def at(self, threshold: float) -> Mistakes:
        """Return all errors of the detections with a score of at least ``threshold``."""
        kept = self.score >= threshold
        is_match = self.object > NO_OBJECT
        detected = self.object[kept & is_match]
        made_up = kept & ~is_match
        missed = self.object_score < threshold
        # An object that is missed and a detection of no object belong together if they overlap.
        detections, objects, ious = [], [], []
        possible = made_up[self.pairs[:, 0]] & missed[self.pairs[:, 1]]
        for (detection, index), iou in zip(
            self.pairs[possible].tolist(), self.pair_iou[possible].tolist()
        ):
            if made_up[detection] and missed[index]:
                made_up[detection] = missed[index] = False
                detections.append(detection)
                objects.append(index)
                ious.append(iou)
        rows = np.flatnonzero(made_up)
        lost = np.flatnonzero(missed)
        confused = np.array(detections, dtype=np.int64)
        of_objects = np.array(objects, dtype=np.int64)
        numbers = [len(rows), len(lost), len(confused)]
        no_object, no_detection = np.full(len(rows), NO_LABEL), np.full(len(lost), NO_LABEL)
        lost_labels, confused_labels = self.object_label[lost], self.object_label[of_objects]
        mistakes = Mistakes(
            kind=np.repeat([FALSE_POSITIVE, MISSED, CONFUSED], numbers),
            image=_join([self.image[rows], self.object_image[lost], self.image[confused]], int),
            box=np.concatenate([self.box[rows], self.object_box[lost], self.box[confused]]),
            score=_join(
                [self.score[rows], self.object_score[lost].clip(min=0), self.score[confused]],
                float,
            ),
            iou=_join([self.iou[rows], np.zeros(len(lost)), np.array(ious)], float),
            object=_join([no_object, lost_labels, confused_labels], int),
            detection=_join([self.label[rows], no_detection, self.label[confused]], int),
            detected_image=self.object_image[detected],
            detected_label=self.object_label[detected],
        )
        area = (mistakes.box[:, 2:] - mistakes.box[:, :2]).prod(axis=1)
        by_score = np.where(mistakes.kind == MISSED, mistakes.score, -mistakes.score)
        order = np.lexsort((-area, by_score))
        return mistakes.select(order, slice(None))


def _join(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    """Concatenate arrays, of which there may be none."""
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def _label(value: np.int64) -> int | None:
    return None if value == NO_LABEL else int(value)
