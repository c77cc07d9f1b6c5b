"""COCO AP of boxes or of masks: the twelve figures and a row for each class, by faster-coco-eval.

Data sets number images and categories as they like (strings, holes, zero). Here images, classes and annotations
are all counted from 1: an annotation with id 0 would silently count as missed, because the evaluator marks "unmatched"
with 0. Original ids return where results leave, in :func:`to_coco_results`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster

from groupdetr.data.records import CocoSplit, Record
from groupdetr.errors import DataError
from groupdetr.evaluation.figures import with_nan, without_nan
from groupdetr.structures.detections import Detections, Runs, from_text

FIGURES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
BOX_FIGURES = (
    "box_AP",
    "box_AP50",
    "box_AP75",
)  # of the same detections, where AP is of their masks
_AT_50, _ALL_SIZES, _MOST_DETECTIONS = (
    0,
    0,
    -1,
)  # indices into the evaluator's IoU, area and maxDets axes


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

    stats: dict[str, float]  # FIGURES, and of masks BOX_FIGURES beside
    per_class: list[ClassAP]
    kind: str = "box"  # whose IoU counts: box or mask

    def beside(self, boxes: Evaluation) -> Evaluation:
        """With some figures of the same detections' boxes."""
        return replace(
            self,
            stats=self.stats
            | {name: boxes.stats[name.removeprefix("box_")] for name in BOX_FIGURES},
        )

    def by_kind(self) -> dict[str, dict[str, float]]:
        """The figures of each kind: the twelve of this one, and those of boxes that stand beside them."""
        others = {
            name.removeprefix("box_"): self.stats[name]
            for name in BOX_FIGURES
            if name in self.stats
        }
        own = {name: self.stats[name] for name in FIGURES}
        return {self.kind: own, "box": others} if others else {self.kind: own}

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file; undefined figures are None, because JSON knows no nan."""
        rows = [without_nan(asdict(row)) for row in self.per_class]
        return {"kind": self.kind, **without_nan(self.stats), "per_class": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """The reverse; other keys do no harm."""
        rows = [ClassAP(**with_nan(row)) for row in content["per_class"]]
        stats = {name: content[name] for name in (*FIGURES, *BOX_FIGURES) if name in content}
        return cls(
            with_nan(stats), rows, content.get("kind", cls.kind)
        )  # older files do not say that it is of boxes


def evaluate(split: CocoSplit, detections: Sequence[Detections], kind: str = "box") -> Evaluation:
    """COCO AP of ``detections``, one for each record of ``split`` and in its order; no score threshold.

    ``kind``: whether the IoU of boxes counts ("box", COCO's bbox) or that of masks ("mask", its segm), which
    detections and records then must have. At most 100 detections of a class and image count, recorded areas decide
    what is small, and a detection inside a crowd is neither right nor wrong: all as in the COCO challenge.
    """
    if len(detections) != len(split.records):
        raise ValueError(f"{len(detections)} detections for {len(split.records)} images")
    present = sorted({int(label) for record in split.records for label in record.labels})
    if not present:  # nothing to find: every figure is undefined
        return Evaluation(dict.fromkeys(FIGURES, math.nan), _class_rows(split, {}), kind)
    evaluator = _evaluated(split, detections, present, kind)
    stats = {name: _or_nan(value) for name, value in zip(FIGURES, evaluator.stats)}
    precision = evaluator.eval["precision"][
        :, :, :, _ALL_SIZES, _MOST_DETECTIONS
    ]  # [IoU, recall, class]
    rows = _class_rows(split, {label: precision[..., k] for k, label in enumerate(present)})
    return Evaluation(stats, rows, kind)


def to_coco_results(split: CocoSplit, detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections as a COCO results file: original image and category ids, boxes x,y,width,height in pixels, and masks
    where there are some."""
    ids = [category.id for category in split.categories]
    return [
        {"image_id": record.image_id, "category_id": ids[label], "bbox": box, "score": score} | mask
        for record, found in zip(split.records, detections, strict=True)
        for label, box, score, mask in zip(
            *(
                found.labels.tolist(),
                found.xywh().tolist(),
                found.scores.tolist(),
                found.segmentations(),
            )
        )
    ]


def from_coco_results(split: CocoSplit, results: Sequence[Mapping[str, Any]]) -> list[Detections]:
    """The reverse: one Detections for each record of ``split``, by falling score.

    Boxes stay float64, so that the AP of a file owes nothing to rounding.
    """
    images = {record.image_id: i for i, record in enumerate(split.records)}
    labels = {category.id: label for label, category in enumerate(split.categories)}
    masks = any("segmentation" in result for result in results)
    rows: list[list[tuple[int, _Result]]] = [[] for _ in split.records]
    for number, result in enumerate(results):
        row = _read(result, number, masks)
        label = _known(labels, row.category, "category", number)
        rows[_known(images, row.image, "image", number)].append((label, row))
    return [_detections(found, masks) for found in rows]


def _evaluated(
    split: CocoSplit, detections: Sequence[Detections], present: Sequence[int], kind: str
) -> COCOeval_faster:
    numbers = _image_numbers(split)
    name, annotations, results = _KINDS[kind]
    truth = COCO(_ground_truth(split, numbers, annotations))
    found = truth.loadRes(results(detections, numbers))
    evaluator = COCOeval_faster(truth, found, name, print_function=_silent, extra_calc=False)
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


def _ground_truth(
    split: CocoSplit, numbers: Sequence[int], annotations: _Annotations
) -> dict[str, list[_Row]]:
    objects = [
        row for image, record in zip(numbers, split.records) for row in annotations(image, record)
    ]
    sizes = [{"width": record.width, "height": record.height} for record in split.records]
    return {
        "images": [{"id": image, **size} for image, size in zip(numbers, sizes)],
        "categories": [{"id": label} for label in range(1, len(split.categories) + 1)],
        "annotations": [{"id": number, **row} for number, row in enumerate(objects, 1)],
    }


def _boxes(image: int, record: Record) -> list[_Row]:
    columns = (
        record.boxes.tolist(),
        record.labels.tolist(),
        record.areas.tolist(),
        record.crowd.tolist(),
    )
    return [
        {
            "image_id": image,
            "category_id": label + 1,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for box, label, area, crowd in zip(*columns)
    ]


def _masks(image: int, record: Record) -> list[_Row]:
    if record.shapes is None:
        raise ValueError(f"the masks of {record.file_name} were not read: load(..., masks=True)")
    runs = [shape.runs(record.height, record.width) for shape in record.shapes]
    return [
        {**row, "segmentation": mask} for row, mask in zip(_boxes(image, record), runs, strict=True)
    ]


def _box_results(detections: Sequence[Detections], numbers: Sequence[int]) -> np.ndarray:
    """All detections as the evaluator takes arrays, [D,7] float64: image, x, y, width, height, score, category."""
    rows = [
        np.column_stack(
            [
                np.full(len(found), image),
                found.xywh(),
                _array(found.scores),
                _array(found.labels) + 1,
            ]
        )
        for image, found in zip(numbers, detections)
    ]
    return np.concatenate(rows)


def _mask_results(detections: Sequence[Detections], numbers: Sequence[int]) -> list[_Row]:
    """All detections, without their boxes: the area of a detection is then that of its mask."""
    return [
        {"image_id": image, "category_id": label + 1, "segmentation": mask, "score": score}
        for image, found in zip(numbers, detections)
        for label, mask, score in zip(
            found.labels.tolist(), found.masks or (), found.scores.tolist(), strict=True
        )
    ]


_Row = dict[str, Any]
_Annotations = Callable[[int, Record], list[_Row]]
_KINDS: dict[
    str, tuple[str, _Annotations, Callable[..., Any]]
] = {  # whose IoU counts: the evaluator's name for it
    "box": ("bbox", _boxes, _box_results),
    "mask": ("segm", _masks, _mask_results),
}


def _class_rows(split: CocoSplit, precision: Mapping[int, np.ndarray]) -> list[ClassAP]:
    """``precision``: label -> [IoU, recall], for the classes that occur."""
    labels = [record.labels[~record.crowd].tolist() for record in split.records]
    objects = Counter(label for image in labels for label in image)
    images = Counter(label for image in labels for label in set(image))
    undefined = np.full((1, 1), -1.0)
    rows = []
    for label, category in enumerate(split.categories):
        p = precision.get(label, undefined)
        rows.append(
            ClassAP(category.name, _mean(p), _mean(p[_AT_50]), objects[label], images[label])
        )
    return rows


def _mean(precision: np.ndarray) -> float:
    """Mean over thresholds; the evaluator writes -1 where there is nothing to find."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else math.nan


def _or_nan(figure: float) -> float:
    return math.nan if figure < 0 else float(figure)


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


class _Result(NamedTuple):
    """A row of a results file."""

    image: Any
    category: Any
    box: list[float]  # x0, y0, x1, y1
    score: float
    mask: Runs | None


def _read(result: Mapping[str, Any], number: int, masks: bool) -> _Result:
    try:
        x, y, width, height = (float(value) for value in result["bbox"])
        box, mask = (
            [x, y, x + width, y + height],
            from_text(result["segmentation"]) if masks else None,
        )
        return _Result(result["image_id"], result["category_id"], box, float(result["score"]), mask)
    except (KeyError, TypeError, ValueError) as error:
        message = "a result needs image_id, category_id, bbox [x,y,width,height] and score"
        message += ", and segmentation as the others have it: compressed run lengths" * masks
        raise DataError(message, f"result {number}: {result!r:.200}") from error


def _known(index: Mapping[Any, int], key: Any, noun: str, number: int) -> int:
    try:
        return index[key]
    except (KeyError, TypeError):
        raise DataError(f"the data set has no {noun} {key!r:.80}", f"result {number}") from None


def _detections(rows: Sequence[tuple[int, _Result]], masks: bool) -> Detections:
    """Of one image, by falling score, from (label, result)."""
    rows = sorted(rows, key=lambda row: -row[1].score)
    return Detections(
        scores=torch.tensor([result.score for _, result in rows], dtype=torch.float64),
        labels=torch.tensor([label for label, _ in rows], dtype=torch.int64),
        boxes=torch.tensor([result.box for _, result in rows], dtype=torch.float64).reshape(-1, 4),
        masks=tuple(result.mask for _, result in rows if result.mask) if masks else None,
    )
