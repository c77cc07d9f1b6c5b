"""COCO box AP: the twelve figures and a row for each class, by faster-coco-eval.

Data sets number images and categories as they like (strings, holes, zero). Here images, classes and annotations
are all counted from 1: an annotation with id 0 would silently count as missed, because the evaluator marks "unmatched"
with 0. Original ids return where results leave, in :func:`to_coco_results`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster

from groupdetr.data.records import CocoSplit, Record
from groupdetr.detections import Detections
from groupdetr.errors import DataError

FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
_AT_50, _ALL_SIZES, _MOST_DETECTIONS = 0, 0, -1  # indices into the evaluator's IoU, area and maxDets axes


@dataclass(frozen=True)
class ClassAP:
    """How well one class is found."""

    name: str
    AP: float  # nan where the split holds no object of the class
    AP50: float
    objects: int  # crowds not counted
    images: int  # with at least one such object


@dataclass(frozen=True)
class Evaluation:
    """The twelve COCO figures, each in [0,1] or nan where undefined, and a row for each class of the data set."""

    stats: dict[str, float]  # FIGURES
    per_class: list[ClassAP]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file; undefined figures are None, because JSON knows no nan."""
        rows = [_defined(asdict(row)) for row in self.per_class]
        return {**_defined(self.stats), "per_class": rows}


def evaluate(split: CocoSplit, detections: Sequence[Detections]) -> Evaluation:
    """COCO box AP of ``detections``, one for each record of ``split`` and in its order; no score threshold.

    At most 100 detections of a class and image count, recorded areas decide what is small, and a detection inside a
    crowd is neither right nor wrong: all as in the COCO challenge.
    """
    if len(detections) != len(split.records):
        raise ValueError(f"{len(detections)} detections for {len(split.records)} images")
    present = sorted({int(label) for record in split.records for label in record.labels})
    if not present:  # nothing to find: every figure is undefined
        return Evaluation(dict.fromkeys(FIGURES, math.nan), _class_rows(split, {}))
    evaluator = _evaluated(split, detections, present)
    stats = {name: _or_nan(value) for name, value in zip(FIGURES, evaluator.stats)}
    precision = evaluator.eval["precision"][:, :, :, _ALL_SIZES, _MOST_DETECTIONS]  # [IoU, recall, class]
    return Evaluation(stats, _class_rows(split, {label: precision[..., k] for k, label in enumerate(present)}))


def to_coco_results(split: CocoSplit, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections as a COCO results file: original image and category ids, boxes x,y,width,height in pixels."""
    ids = [category.id for category in split.categories]
    return [
        {"image_id": record.image_id, "category_id": ids[int(label)], "bbox": box.tolist(), "score": float(score)}
        for record, found in zip(split.records, detections, strict=True)
        for label, box, score in zip(found.labels, _xywh(found), found.scores)
    ]


def from_coco_results(split: CocoSplit, results: Sequence[Mapping[str, Any]]) -> list[Detections]:
    """The reverse: one Detections for each record of ``split``, by falling score.

    Boxes stay float64, so that the AP of a file owes nothing to rounding.
    """
    images = {record.image_id: i for i, record in enumerate(split.records)}
    labels = {category.id: label for label, category in enumerate(split.categories)}
    rows: list[list[tuple[int, list[float], float]]] = [[] for _ in split.records]
    for number, result in enumerate(results):
        image, label, box, score = _read(result, number)
        rows[_known(images, image, "image", number)].append((_known(labels, label, "category", number), box, score))
    return [_detections(sorted(found, key=lambda row: -row[2])) for found in rows]


def _evaluated(split: CocoSplit, detections: Sequence[Detections], present: Sequence[int]) -> COCOeval_faster:
    numbers = _image_numbers(split)
    truth = COCO(_ground_truth(split, numbers))
    found = truth.loadRes(_result_rows(detections, numbers))
    evaluator = COCOeval_faster(truth, found, "bbox", print_function=_silent, extra_calc=False)
    # Classes without objects are undefined and enter no mean; leaving them out keeps thousands of classes affordable.
    evaluator.params.catIds = [label + 1 for label in present]
    evaluator.run()
    return evaluator


def _silent(*_: object) -> None:
    """The evaluator prints; its callers report in their own words."""


def _image_numbers(split: CocoSplit) -> list[int]:
    """1..n for the records, by ascending original id: detections of equal score rank by it in the reference."""
    ids = [record.image_id for record in split.records]
    try:
        order = sorted(range(len(ids)), key=lambda i: ids[i])
    except TypeError:  # numbers and strings mixed: no order but that of the file
        order = list(range(len(ids)))
    rank = {record: number for number, record in enumerate(order, 1)}
    return [rank[record] for record in range(len(ids))]


def _ground_truth(split: CocoSplit, numbers: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    annotations = [row for image, record in zip(numbers, split.records) for row in _annotations(image, record)]
    return {
        "images": [{"id": image} for image in numbers],
        "categories": [{"id": label} for label in range(1, len(split.categories) + 1)],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, 1)],
    }


def _annotations(image: int, record: Record) -> list[dict[str, Any]]:
    columns = (record.boxes.tolist(), record.labels.tolist(), record.areas.tolist(), record.crowd.tolist())
    return [
        {"image_id": image, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for box, label, area, crowd in zip(*columns)
    ]


def _result_rows(detections: Sequence[Detections], numbers: Sequence[int]) -> np.ndarray:
    """All detections as the evaluator takes arrays, [D,7] float64: image, x, y, width, height, score, category."""
    rows = [
        np.column_stack([np.full(len(found), image), _xywh(found), _array(found.scores), _array(found.labels) + 1])
        for image, found in zip(numbers, detections)
    ]
    return np.concatenate(rows)


def _class_rows(split: CocoSplit, precision: Mapping[int, np.ndarray]) -> list[ClassAP]:
    """``precision``: label -> [IoU, recall], for the classes that occur."""
    labels = [record.labels[~record.crowd].tolist() for record in split.records]
    objects = Counter(label for image in labels for label in image)
    images = Counter(label for image in labels for label in set(image))
    undefined = np.full((1, 1), -1.0)
    rows = []
    for label, category in enumerate(split.categories):
        p = precision.get(label, undefined)
        rows.append(ClassAP(category.name, _mean(p), _mean(p[_AT_50]), objects[label], images[label]))
    return rows


def _mean(precision: np.ndarray) -> float:
    """Mean over thresholds; the evaluator writes -1 where there is nothing to find."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else math.nan


def _or_nan(figure: float) -> float:
    return math.nan if figure < 0 else float(figure)


def _defined(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _xywh(found: Detections) -> np.ndarray:
    """[D,4] float64 x,y,width,height in pixels."""
    boxes = _array(found.boxes).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _read(result: Mapping[str, Any], number: int) -> tuple[Any, Any, list[float], float]:
    try:
        x, y, width, height = (float(value) for value in result["bbox"])
        return result["image_id"], result["category_id"], [x, y, x + width, y + height], float(result["score"])
    except (KeyError, TypeError, ValueError) as error:
        message = "a result needs image_id, category_id, bbox [x,y,width,height] and score"
        raise DataError(message, f"result {number}: {result!r:.200}") from error


def _known(index: Mapping[Any, int], key: Any, noun: str, number: int) -> int:
    try:
        return index[key]
    except (KeyError, TypeError):
        raise DataError(f"the data set has no {noun} {key!r:.80}", f"result {number}") from None


def _detections(rows: Sequence[tuple[int, list[float], float]]) -> Detections:
    labels, boxes, scores = ([row[column] for row in rows] for column in range(3))
    return Detections(
        scores=torch.tensor(scores, dtype=torch.float64),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
    )
