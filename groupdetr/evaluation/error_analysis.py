"""What a detector misses, makes up and confuses: curves, the best threshold, and the worst images.

All of it follows from the matches of COCO's evaluation at an IoU of 0.5 (`evaluation/matching.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.records import CocoSplit, Record
from groupdetr.evaluation.matching import (
    MATCH_IOU,
    NO_OBJECT,
    ImageMatches,
    image_numbers,
    match_image,
)
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject

RECALLS = np.linspace(0, 1, 101)  # of the curves, as COCO's AP samples them
NUM_WORST = 8  # images that are recorded
DEFAULT_THRESHOLD = 0.5  # of a detector that detects nothing, so that no threshold is the best
_EPSILON = np.spacing(1)  # pycocotools adds it where a precision is divided


@dataclass(frozen=True)
class BestF1:
    """The score threshold with the best F1, counted over the objects of all classes together."""

    score: float  # halfway between the lowest score that is kept and the next lower one
    F1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ClassCurve:
    """The precision of one class at the 101 recalls of `RECALLS`; 0 for those it never reaches.

    It is the highest precision at this recall or a higher one. Its mean is COCO's AP50.
    """

    name: str
    objects: int  # without crowds
    precision: list[float]  # [101]


@dataclass(frozen=True)
class Confusion:
    """How many objects of one class are detected as another class.

    ``object`` None: there is no object, the detections are made up. ``detection`` None: the objects
    are missed.
    """

    object: str | None
    detection: str | None
    count: int


@dataclass(frozen=True)
class DrawnBox:
    """An object or a detection of an image."""

    name: str  # of its class
    box: list[float]  # x0, y0, x1, y1 in pixels
    score: float | None = None  # None for an object


@dataclass(frozen=True)
class ImageErrors:
    """The objects that are missed in one image, and the detections that are made up."""

    image_id: int | str
    file_name: str
    missed: list[DrawnBox]
    made_up: list[DrawnBox]
    detected: list[DrawnBox]  # detections of objects


@dataclass(frozen=True)
class ErrorAnalysis:
    """The errors of a detector in a split."""

    best_f1: BestF1 | None  # None if no object is detected at any threshold
    threshold: float  # of the confusions and the worst images
    curves: list[ClassCurve]  # of the classes that have objects
    confusions: list[Confusion]  # those that occur
    worst_images: list[ImageErrors]  # those with the most errors first

    def to_json(self) -> JsonObject:
        """Return the content of errors.json, plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: JsonObject) -> ErrorAnalysis:
        """Create from what `to_json` returned. Other keys are ignored."""
        worst = []
        for image in content["worst_images"]:
            boxes = {}
            for kind in ("missed", "made_up", "detected"):
                boxes[kind] = [DrawnBox(**box) for box in image[kind]]
            worst.append(ImageErrors(image["image_id"], image["file_name"], **boxes))
        best = content["best_f1"]
        return cls(
            best_f1=None if best is None else BestF1(**best),
            threshold=content["threshold"],
            curves=[ClassCurve(**curve) for curve in content["curves"]],
            confusions=[Confusion(**confusion) for confusion in content["confusions"]],
            worst_images=worst,
        )


def analyse_errors(
    split: CocoSplit, detections: Sequence[Detections], kind: str = "box"
) -> ErrorAnalysis | None:
    """Return the errors of ``detections``, one for each record of ``split``, in the same order.

    ``kind`` is what the IoU is computed of, "box" or "mask". None if the split has no objects.
    """
    num_objects = Counter[int]()
    for record in split.records:
        num_objects.update(record.labels[~record.crowd].tolist())
    if not num_objects:
        return None
    matches = [
        match_image(record, of_image, kind)
        for record, of_image in zip(split.records, detections, strict=True)
    ]
    scores, labels, is_detected = _counted_detections(split, detections, matches)
    best = best_f1(scores, is_detected, num_objects.total())
    threshold = DEFAULT_THRESHOLD if best is None else best.score
    names = [category.name for category in split.categories]

    curves = []
    for label in sorted(num_objects):
        of_class = labels == label
        precision = precision_at_recalls(
            scores[of_class], is_detected[of_class], num_objects[label]
        )
        curves.append(ClassCurve(names[label], num_objects[label], precision.round(5).tolist()))

    counts = Counter[tuple[int | None, int | None]]()
    images = []
    for record, of_image, matches_of_image in zip(split.records, detections, matches):
        kept = np.flatnonzero(of_image.scores.numpy() >= threshold)
        counts.update(_confusions(record, of_image, matches_of_image, kept))
        images.append(_image_errors(record, of_image, matches_of_image, kept, names))
    confusions = []
    for (of_object, of_detection), count in counts.most_common():
        object_name = None if of_object is None else names[of_object]
        detection_name = None if of_detection is None else names[of_detection]
        confusions.append(Confusion(object_name, detection_name, count))

    def num_errors(image: ImageErrors) -> int:
        return len(image.missed) + len(image.made_up)

    worst = sorted(images, key=num_errors, reverse=True)[:NUM_WORST]
    return ErrorAnalysis(
        best, threshold, curves, confusions, [image for image in worst if num_errors(image)]
    )


def _counted_detections(
    split: CocoSplit, detections: Sequence[Detections], matches: Sequence[ImageMatches]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return score, label, and if an object is detected, of all detections that are not ignored.

    They are sorted by decreasing score. Of equal scores, those of the image with the lower id come
    first, as in pycocotools.
    """
    scores, labels, is_detected = [np.zeros(0)], [np.zeros(0, int)], [np.zeros(0, bool)]
    for record in np.argsort(image_numbers(split)).tolist():
        of_image, of_matches = detections[record], matches[record]
        counted = of_matches.object >= NO_OBJECT
        scores.append(of_image.scores.double().numpy()[counted])
        labels.append(of_image.labels.numpy()[counted])
        is_detected.append(of_matches.object[counted] > NO_OBJECT)
    all_scores = np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")
    return all_scores[order], np.concatenate(labels)[order], np.concatenate(is_detected)[order]


def best_f1(
    scores: NDArray[np.float64], is_detected: NDArray[np.bool_], num_objects: int
) -> BestF1 | None:
    """Return the threshold with the best F1. ``scores`` [D] are sorted by decreasing score.

    ``is_detected`` [D] is True for detections of an object, of which there are ``num_objects``.
    None if no object is detected. Of equal thresholds, the highest one is taken.
    """
    if not is_detected.any():
        return None
    true_positives = is_detected.cumsum()
    num_kept = np.arange(1, len(scores) + 1)
    f1 = 2 * true_positives / (num_kept + num_objects)
    # A threshold keeps all detections of the same score, or none of them.
    is_last_of_score = np.append(scores[1:] < scores[:-1], True)
    last = int(np.where(is_last_of_score, f1, -1).argmax())
    next_score = scores[last + 1] if last + 1 < len(scores) else scores[last]
    return BestF1(
        score=float((scores[last] + next_score) / 2),
        F1=float(f1[last]),
        precision=float(true_positives[last] / num_kept[last]),
        recall=float(true_positives[last] / num_objects),
    )


def precision_at_recalls(
    scores: NDArray[np.float64], is_detected: NDArray[np.bool_], num_objects: int
) -> NDArray[np.float64]:
    """Return the precision of one class at each of `RECALLS`, as COCO computes it: [101].

    ``scores`` [D] are sorted by decreasing score.
    """
    true_positives = is_detected.cumsum()
    precision = true_positives / (np.arange(1, len(scores) + 1) + _EPSILON)
    recall = true_positives / num_objects
    # The highest precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    indices = np.searchsorted(recall, RECALLS, side="left")
    reached = indices < len(scores)
    result = np.zeros(len(RECALLS))
    result[reached] = envelope[indices[reached]]
    return result


def _errors(
    record: Record, matches: ImageMatches, kept: NDArray[np.int64]
) -> tuple[list[int], list[int]]:
    """Return the objects that are missed, and the detections among ``kept`` that are made up."""
    detected = set(matches.object[kept].tolist())
    missed = [int(i) for i in np.flatnonzero(~record.crowd) if int(i) not in detected]
    made_up = [int(i) for i in kept if matches.object[i] == NO_OBJECT]
    return missed, made_up


def _confusions(
    record: Record, detections: Detections, matches: ImageMatches, kept: NDArray[np.int64]
) -> Counter[tuple[int | None, int | None]]:
    """Count (label of the object, label of the detection) in one image; None is background.

    Objects that are detected count for their own class. Of what remains, an object and a detection
    of another class belong together if their IoU is at least 0.5, the largest IoU first.
    """
    labels = detections.labels.tolist()
    counts = Counter[tuple[int | None, int | None]]()
    for index in matches.object[kept][matches.object[kept] > NO_OBJECT]:
        label = int(record.labels[index])
        counts[label, label] += 1
    missed, made_up = _errors(record, matches, kept)
    pairs = [(matches.ious[i, j], i, j) for i in made_up for j in missed]
    for iou, detection, index in sorted(pairs, key=lambda pair: -pair[0]):
        if iou < MATCH_IOU:
            break
        if detection in made_up and index in missed:
            made_up.remove(detection)
            missed.remove(index)
            counts[int(record.labels[index]), labels[detection]] += 1
    counts.update((int(record.labels[index]), None) for index in missed)
    counts.update((None, labels[detection]) for detection in made_up)
    return counts


def _image_errors(
    record: Record,
    detections: Detections,
    matches: ImageMatches,
    kept: NDArray[np.int64],
    names: Sequence[str],
) -> ImageErrors:
    missed, made_up = _errors(record, matches, kept)
    detected = [int(i) for i in kept if matches.object[i] > NO_OBJECT]

    def detection_box(index: int) -> DrawnBox:
        box = [round(coordinate, 2) for coordinate in detections.boxes[index].tolist()]
        name = names[int(detections.labels[index])]
        return DrawnBox(name, box, round(float(detections.scores[index]), 4))

    corners = record.corners
    missed_boxes = []
    for index in missed:
        box = [round(float(coordinate), 2) for coordinate in corners[index]]
        missed_boxes.append(DrawnBox(names[int(record.labels[index])], box))
    return ImageErrors(
        image_id=record.image_id,
        file_name=record.file_name,
        missed=missed_boxes,
        made_up=[detection_box(index) for index in made_up],
        detected=[detection_box(index) for index in detected],
    )
