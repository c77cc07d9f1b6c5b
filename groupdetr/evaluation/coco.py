"""COCO AP of boxes or masks: the twelve COCO metrics and one row per class.

The curves of precision and recall are computed by hotcoco where that is installed (the extra
``fast``), and by faster-coco-eval elsewhere. They are equal.

Datasets may use any ids for images and categories (strings, gaps, zero). Here images, classes and
annotations are numbered from 1. An annotation with id 0 would silently count as missed, because the
evaluator marks "unmatched" with 0. `to_coco_results` writes the original ids.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from groupdetr.data.records import CocoSplit, Record
from groupdetr.errors import DataError
from groupdetr.evaluation.error_analysis import ErrorAnalysis
from groupdetr.evaluation.matching import image_numbers
from groupdetr.evaluation.nan_json import nan_to_none, none_to_nan
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.structures.rle import RLE, rle_from_json

HAS_HOTCOCO = find_spec("hotcoco") is not None

METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
# The metrics of the boxes of the same detections, in an evaluation of masks.
BOX_METRICS = ("box_AP", "box_AP50", "box_AP75")

# Indices into the evaluator's axes of IoU thresholds (0.5, 0.55, ..., 0.95), of object areas (all,
# small, medium, large) and of the largest number of detections (1, 10, 100).
_IOU_50, _IOU_75 = 0, 5
_ALL_AREAS = 0
_MAX_DETECTIONS = -1

_IOU_TYPES = {"box": "bbox", "mask": "segm"}  # our kind -> the name in the COCO evaluator


@dataclass(frozen=True)
class ClassAP:
    """AP of one class."""

    name: str
    AP: float  # nan if the split has no object of the class
    AP50: float
    objects: int  # without crowds
    images: int  # with at least one such object


@dataclass(frozen=True)
class CocoEvaluation:
    """The twelve COCO metrics, each in [0,1] or nan if undefined, and one row per class."""

    stats: dict[str, float]  # METRICS; in an evaluation of masks also BOX_METRICS
    per_class: list[ClassAP]
    kind: str = "box"  # "box" or "mask": what the IoU is computed of
    # At an IoU of 0.5; None if they were not analysed, or if the split has no object.
    errors: ErrorAnalysis | None = field(default=None, compare=False)

    def with_box_metrics(self, boxes: CocoEvaluation) -> CocoEvaluation:
        """Return this evaluation of masks with the BOX_METRICS of ``boxes``."""
        box_stats = {name: boxes.stats[name.removeprefix("box_")] for name in BOX_METRICS}
        return replace(self, stats=self.stats | box_stats)

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Return the twelve metrics by kind. An evaluation of masks may also have three of boxes.

        ``{"mask": {"AP": 0.4, ...}, "box": {"AP": 0.45, "AP50": 0.6, "AP75": 0.5}}``
        """
        metrics = {self.kind: {name: self.stats[name] for name in METRICS}}
        box_names = [name for name in BOX_METRICS if name in self.stats]
        if box_names:
            metrics["box"] = {name.removeprefix("box_"): self.stats[name] for name in box_names}
        return metrics

    def to_json(self) -> JsonObject:
        """Return plain data for a file. Undefined metrics are None, because JSON has no nan."""
        rows = [nan_to_none(asdict(row)) for row in self.per_class]
        best = None if self.errors is None else self.errors.best_f1
        return {
            "kind": self.kind,
            **nan_to_none(self.stats),
            "F1": None if best is None else best.F1,
            "precision": None if best is None else best.precision,
            "recall": None if best is None else best.recall,
            "score_threshold": None if best is None else best.score,
            "per_class": rows,
        }

    def details(self) -> JsonObject | None:
        """Return what the page shows beyond the metrics, the content of errors.json."""
        return None if self.errors is None else self.errors.to_json()

    @classmethod
    def from_json(cls, content: JsonObject) -> CocoEvaluation:
        """Create from what `to_json` returned. Other keys are ignored."""
        rows = [ClassAP(**none_to_nan(row)) for row in content["per_class"]]
        stats = {name: content[name] for name in (*METRICS, *BOX_METRICS) if name in content}
        # Older files have no kind; they are evaluations of boxes.
        return cls(none_to_nan(stats), rows, content.get("kind", cls.kind))


def evaluate(
    split: CocoSplit, detections: Sequence[Detections], kind: str = "box"
) -> CocoEvaluation:
    """Return the COCO AP of ``detections``, one for each record of ``split``, in the same order.

    ``kind`` is what the IoU is computed of: boxes ("box", COCO's bbox) or masks ("mask", COCO's
    segm). For masks, both detections and records must have them.

    As in the COCO challenge, there is no score threshold, at most 100 detections per class and
    image are evaluated, recorded areas define small, medium and large, and a detection inside a
    crowd is neither a true nor a false positive.

    `DataError` if a box or a score is not finite, or if a label is not a class of ``split``.
    """
    if len(detections) != len(split.records):
        raise ValueError(f"{len(detections)} detections for {len(split.records)} images")
    for record, image_detections in zip(split.records, detections):
        _require_possible(record, image_detections, len(split.categories))
    labels_with_objects: set[int] = set()
    for record in split.records:
        labels_with_objects.update(record.labels.tolist())
    present = sorted(labels_with_objects)
    if not present:  # Without any object, every metric is undefined.
        return CocoEvaluation(dict.fromkeys(METRICS, math.nan), _class_rows(split, {}), kind)

    curves = _evaluate_classes(split, detections, present, kind)
    precision = curves.precision[:, :, :, _ALL_AREAS, _MAX_DETECTIONS]
    class_precision = {label: precision[..., index] for index, label in enumerate(present)}
    return CocoEvaluation(curves.stats(), _class_rows(split, class_precision), kind)


def to_coco_results(split: CocoSplit, detections: Sequence[Detections]) -> list[JsonObject]:
    """Return detections as the rows of a COCO results file, with the original ids.

    Boxes are x, y, width, height in pixels. Masks are included if there are any.
    """
    category_ids = [category.id for category in split.categories]
    results = []
    for record, image_detections in zip(split.records, detections, strict=True):
        columns = zip(
            image_detections.labels.tolist(),
            image_detections.xywh().tolist(),
            image_detections.scores.tolist(),
            image_detections.segmentations(),
        )
        for label, box, score, segmentation in columns:
            result = {
                "image_id": record.image_id,
                "category_id": category_ids[label],
                "bbox": box,
                "score": score,
                **segmentation,
            }
            results.append(result)
    return results


def from_coco_results(split: CocoSplit, results: Sequence[JsonObject]) -> list[Detections]:
    """Return the detections of a COCO results file, one for each record of ``split``.

    They are sorted by decreasing score. Boxes stay float64, so that rounding does not change the AP
    of a file. If one result has a mask, all must have one. `DataError` if a result is malformed,
    has values that are not finite, or if its image or category is not in the dataset.
    """
    image_index = {record.image_id: index for index, record in enumerate(split.records)}
    label_of_category = {category.id: label for label, category in enumerate(split.categories)}
    with_masks = any("segmentation" in result for result in results)

    parsed: list[list[_Result]] = [[] for _ in split.records]
    for number, row in enumerate(results):
        result = _parse_result(row, number, with_masks)
        label = _look_up(label_of_category, result.category_id, "category", number)
        image = _look_up(image_index, result.image_id, "image", number)
        parsed[image].append(result._replace(label=label))
    return [_to_detections(image_results, with_masks) for image_results in parsed]


def _require_possible(record: Record, detections: Detections, num_classes: int) -> None:
    """Raise `DataError` for a detection that the evaluator would count in some arbitrary way."""
    if len(detections) == 0:
        return
    is_finite = detections.boxes.isfinite().all(1) & detections.scores.isfinite()
    if not is_finite.all():
        first = int((~is_finite).nonzero()[0])
        box, score = detections.boxes[first].tolist(), float(detections.scores[first])
        raise DataError(
            f"detection {first} is not finite: its box is {box} and its score is {score}",
            f"image {record.file_name}",
            "remove the detection; if a detector predicted it, its weights are not finite",
        )
    lowest, highest = int(detections.labels.min()), int(detections.labels.max())
    if lowest < 0 or highest >= num_classes:
        raise DataError(
            f"a detection has the label {lowest if lowest < 0 else highest}, but there are "
            f"{num_classes} classes",
            f"image {record.file_name}",
            f"labels are the indices of the classes, 0 to {num_classes - 1}",
        )


@dataclass(frozen=True, eq=False)
class _Curves:
    """What an evaluator computes. Values are -1 where there is no object."""

    # [10 IoU thresholds, 101 recalls, classes, 4 areas, 3 numbers of detections]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]  # [10, classes, 4, 3] the highest one of all detections

    def stats(self) -> dict[str, float]:
        """Return the twelve metrics of COCO, nan where undefined."""
        precision = self.precision[..., _MAX_DETECTIONS]
        recall = self.recall[..., _MAX_DETECTIONS]
        values = [
            precision[..., _ALL_AREAS],
            precision[_IOU_50, ..., _ALL_AREAS],
            precision[_IOU_75, ..., _ALL_AREAS],
            *(precision[..., area] for area in (1, 2, 3)),
            *(self.recall[..., _ALL_AREAS, number] for number in (0, 1, 2)),
            *(recall[..., area] for area in (1, 2, 3)),
        ]
        return {name: _mean_of_defined(of_name) for name, of_name in zip(METRICS, values)}


_Results = NDArray[np.float64] | list[dict[str, object]]


def _evaluate_classes(
    split: CocoSplit, detections: Sequence[Detections], labels: Sequence[int], kind: str
) -> _Curves:
    """Run an evaluator on the classes ``labels``."""
    image_ids = image_numbers(split)
    with_masks = kind == "mask"
    ground_truth = _ground_truth(split, image_ids, with_masks)
    results: _Results
    if with_masks:
        results = _mask_results(detections, image_ids)
    else:
        results = _box_results(detections, image_ids)
    # The AP of a class without objects is undefined and is in no mean. Leaving these classes out
    # saves time and memory for datasets with thousands of classes.
    category_ids = [label + 1 for label in labels]
    run = _by_hotcoco if HAS_HOTCOCO else _by_faster_coco_eval
    return run(ground_truth, results, category_ids, _IOU_TYPES[kind])


def _by_hotcoco(
    ground_truth: JsonObject, results: _Results, category_ids: list[int], iou_type: str
) -> _Curves:
    import hotcoco

    truth = hotcoco.COCO(ground_truth)
    evaluator = hotcoco.COCOeval(truth, truth.load_res(results), iou_type)
    evaluator.params.cat_ids = category_ids
    evaluator.evaluate()
    evaluator.accumulate()
    curves = evaluator.eval
    assert curves is not None
    return _Curves(curves["precision"], curves["recall"])


def _by_faster_coco_eval(
    ground_truth: JsonObject, results: _Results, category_ids: list[int], iou_type: str
) -> _Curves:
    truth = COCO(ground_truth)
    evaluator = COCOeval_faster(
        truth, truth.loadRes(results), iou_type, print_function=_print_nothing, extra_calc=False
    )
    evaluator.params.catIds = category_ids
    evaluator.run()
    return _Curves(evaluator.eval["precision"], evaluator.eval["recall"])


def _print_nothing(*_: object) -> None:
    """Replace the evaluator's print function, because callers print their own tables."""


def _ground_truth(
    split: CocoSplit, image_ids: Sequence[int], with_masks: bool
) -> dict[str, list[dict[str, object]]]:
    """Return the split as a COCO annotation file, with ids from 1."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, record in zip(image_ids, split.records):
        images.append({"id": image_id, "width": record.width, "height": record.height})
        rows = _mask_annotations(record) if with_masks else _box_annotations(record)
        for row in rows:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **row})
    categories: list[dict[str, object]] = []
    for label in range(len(split.categories)):
        # hotcoco warns of categories without a name.
        categories.append({"id": label + 1, "name": str(label)})
    return {"images": images, "categories": categories, "annotations": annotations}


def _box_annotations(record: Record) -> list[dict[str, object]]:
    columns = zip(
        record.boxes.tolist(), record.labels.tolist(), record.areas.tolist(), record.crowd.tolist()
    )
    rows = []
    for box, label, area, crowd in columns:
        row = {"category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
        rows.append(row)
    return rows


def _mask_annotations(record: Record) -> list[dict[str, object]]:
    if record.segmentations is None:
        raise ValueError(f"the masks of {record.file_name} were not read: load(..., masks=True)")
    rows = _box_annotations(record)
    for row, segmentation in zip(rows, record.segmentations, strict=True):
        row["segmentation"] = segmentation.to_rle(record.height, record.width)
    return rows


def _box_results(detections: Sequence[Detections], image_ids: Sequence[int]) -> NDArray[np.float64]:
    """Return all detections as the evaluator's array [D,7] float64.

    Its columns are image, x, y, width, height, score, category.
    """
    rows = []
    for image_id, image_detections in zip(image_ids, detections):
        columns = [
            np.full(len(image_detections), image_id),
            image_detections.xywh(),
            _to_numpy(image_detections.scores),
            _to_numpy(image_detections.labels) + 1,
        ]
        rows.append(np.column_stack(columns))
    return np.concatenate(rows)


def _mask_results(
    detections: Sequence[Detections], image_ids: Sequence[int]
) -> list[dict[str, object]]:
    """Return all detections as rows without boxes.

    The evaluator then takes the area of a detection from its mask.
    """
    rows = []
    for image_id, image_detections in zip(image_ids, detections):
        columns = zip(
            image_detections.labels.tolist(),
            image_detections.masks or (),
            image_detections.scores.tolist(),
            strict=True,
        )
        for label, mask, score in columns:
            row = {
                "image_id": image_id,
                "category_id": label + 1,
                "segmentation": mask,
                "score": score,
            }
            rows.append(row)
    return rows


def _class_rows(split: CocoSplit, precision: Mapping[int, NDArray[np.float64]]) -> list[ClassAP]:
    """Return one row per category. ``precision``: label -> [IoU, recall], if it has objects."""
    objects: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for record in split.records:
        labels = record.labels[~record.crowd].tolist()
        objects.update(labels)
        images.update(set(labels))

    undefined = np.full((1, 1), -1.0)
    rows = []
    for label, category in enumerate(split.categories):
        class_precision = precision.get(label, undefined)
        row = ClassAP(
            name=category.name,
            AP=_mean_of_defined(class_precision),
            AP50=_mean_of_defined(class_precision[_IOU_50]),
            objects=objects[label],
            images=images[label],
        )
        rows.append(row)
    return rows


def _mean_of_defined(values: NDArray[np.float64]) -> float:
    """Return the mean of the defined values, nan if there is none.

    The evaluator writes -1 where there is no object.
    """
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


def _to_numpy(x: torch.Tensor) -> NDArray[np.float64]:
    return x.detach().cpu().double().numpy()


class _Result(NamedTuple):
    """One row of a results file."""

    image_id: object
    category_id: object
    box: list[float]  # x0, y0, x1, y1
    score: float
    mask: RLE | None
    label: int = -1  # class index, once the category is looked up


def _parse_result(row: JsonObject, number: int, with_masks: bool) -> _Result:
    where = f"result {number}: {row!r:.200}"
    try:
        x, y, width, height = (float(value) for value in row["bbox"])
        score = float(row["score"])
        mask = rle_from_json(row["segmentation"]) if with_masks else None
        result = _Result(
            row["image_id"], row["category_id"], [x, y, x + width, y + height], score, mask
        )
    except (KeyError, TypeError, ValueError) as error:
        message = "a result needs image_id, category_id, bbox [x,y,width,height] and score"
        if with_masks:
            message += ", and, as other results have one, a segmentation in compressed run lengths"
        raise DataError(message, where) from error
    if not all(map(math.isfinite, [*result.box, score])):
        raise DataError(
            "the bbox or the score of a result is not finite",
            where,
            "remove the result; if a detector predicted it, its weights are not finite",
        )
    if min(width, height) < 0:
        raise DataError(
            f"the bbox of a result has the width {width:g} and the height {height:g}",
            where,
            "write 'bbox' as x, y, width, height, where x, y is the top left corner",
        )
    return result


def _look_up(index: Mapping[int | str, int], key: Any, noun: str, number: int) -> int:
    try:
        return index[key]
    except (KeyError, TypeError):  # A list as an id is a TypeError.
        raise DataError(f"the dataset has no {noun} {key!r:.80}", f"result {number}") from None


def _to_detections(results: Sequence[_Result], with_masks: bool) -> Detections:
    """Return the detections of one image, sorted by decreasing score."""
    results = sorted(results, key=lambda result: -result.score)
    scores = [result.score for result in results]
    labels = [result.label for result in results]
    boxes = [result.box for result in results]
    masks = None
    if with_masks:
        masks = tuple(result.mask for result in results if result.mask is not None)
    return Detections(
        scores=torch.tensor(scores, dtype=torch.float64),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        masks=masks,
    )
