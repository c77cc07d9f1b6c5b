"""Evaluation of a trained detector of images, and of each of its groups (`groupdetr val`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.records import Category
from groupdetr.engine.accelerator import create_accelerator, loader_workers
from groupdetr.engine.inference import run_inference, use_group
from groupdetr.engine.progress import format_percent
from groupdetr.engine.run_folder import training_data, write_json, write_text
from groupdetr.errors import UsageError
from groupdetr.evaluation.coco import CocoEvaluation, to_coco_results
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.result_formats import Metrics, MetricsTable, TableRow, format_csv

TABLE_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")  # of the printed tables
MAX_UNKNOWN_CLASSES, MAX_KNOWN_CLASSES = 10, 100  # that an error message lists


@dataclass
class Validation:
    """The detections in a split and their evaluation."""

    data: DatasetSplits
    detections: list[Detections]
    evaluation: CocoEvaluation
    groups: list[CocoEvaluation]  # of every group alone; empty without --per-group


def validate(
    run: Path,
    *,
    data: Path | None,
    images: Path | None,
    split: str,
    per_group: bool,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    device: str,
    out: Path,
) -> Metrics:
    """Evaluate a detector on a split, write files, and return what metrics.json holds.

    ``run`` is the folder of a run or a weights file. Without ``data`` the dataset of the run is
    used; ``images`` is the folder of images if ``data`` is an annotation file. ``per_group`` also
    evaluates every group of queries alone. Files go to the folder ``out``.
    """
    accelerator = create_accelerator(Settings(device=device, workers=workers))
    detector = Detector(run, str(accelerator.device), imgsz)
    if data is None:
        data, images = training_data(run, "add --data DATA")
    dataset = read_split(detector, data, images, split)
    task = detector.create_task(dataset)

    detections = detect(detector, task, accelerator, batch, workers)
    groups = []
    if per_group:
        for group in range(detector.recipe.num_groups):
            with use_group(detector.model, group):
                group_detections = detect(detector, task, accelerator, batch, workers)
            groups.append(task.evaluate(group_detections))
    validation = Validation(dataset, detections, task.evaluate(detections), groups)

    content = write_results(validation, split, out)
    return Metrics(content, tables(validation), out)


def read_split(detector: Detector, root: Path, images: Path | None, split: str) -> DatasetSplits:
    """Return a dataset whose ``val`` is the split to evaluate.

    Its labels are class indices of the detector. The detector may have more classes than the data
    set: an imported COCO model has 91 class indices, and a dataset may use some of them. A class
    that the detector does not have is a `UsageError`.
    """
    data = detector.task.read(root, images)
    if split not in data.splits:
        raise UsageError(
            f"there is no split {split!r}", str(root), f"choose from {', '.join(data.splits)}"
        )
    classes = [Category(category_id, name) for category_id, name in detector.categories]
    expect_known_classes(data.categories, classes, root)
    evaluated = data.splits[split].with_categories(tuple(classes))
    return DatasetSplits(data.root, {"train": evaluated, "val": evaluated})


def expect_known_classes(
    categories: Sequence[Category], classes: Sequence[Category], root: Path
) -> None:
    """Raise `UsageError` if the detector's classes lack a category with the same id and name.

    Upper and lower case do not matter.
    """
    name_of_id = {category.id: category.name.casefold() for category in classes}
    unknown = []
    for category in categories:
        if name_of_id.get(category.id) != category.name.casefold():
            unknown.append(category)
    if unknown:
        raise UsageError(
            f"the detector has no class {_list_categories(unknown[:MAX_UNKNOWN_CLASSES])}",
            str(root),
            "rename or remove these categories; the classes of the detector are "
            f"{_list_categories(classes[:MAX_KNOWN_CLASSES])}",
        )


def _list_categories(categories: Sequence[Category]) -> str:
    return ", ".join(f"{category.name} (id {category.id})" for category in categories)


def detect(
    detector: Detector,
    task: DetectionTask,
    accelerator: Accelerator,
    batch: int,
    workers: int | None,
) -> list[Detections]:
    """Return the detections of the detector in every image of ``val``."""
    num_workers = loader_workers(Settings(workers=workers))
    return run_inference(detector.model, task, accelerator, batch, num_workers)


def write_results(validation: Validation, split: str, folder: Path) -> JsonObject:
    """Write metrics.json, predictions.json and the CSV files; return what metrics.json holds."""
    content = {"split": split, **validation.evaluation.to_json()}
    if validation.groups:
        content["per_group"] = [group.to_json() for group in validation.groups]
        write_text(folder / "per_group.csv", format_csv(group_rows(validation.groups)))
    write_json(folder / "metrics.json", content)
    write_text(folder / "per_class.csv", format_csv(class_rows(validation.evaluation)))
    results = to_coco_results(validation.data.splits["val"], validation.detections)
    write_json(folder / "predictions.json", results)
    return content


def tables(validation: Validation) -> list[MetricsTable]:
    """Return the metrics of all classes together, of every class, and of every group."""
    result = [
        MetricsTable(summary_rows(validation.evaluation)),
        MetricsTable(class_rows(validation.evaluation)),
    ]
    if validation.groups:
        ap = [100 * group.stats["AP"] for group in validation.groups]
        median = statistics.median(ap)
        note = f"groups: median AP {median:.1f}, from {min(ap):.1f} to {max(ap):.1f}"
        result.append(MetricsTable(group_rows(validation.groups), note))
    return result


def summary_rows(evaluation: CocoEvaluation) -> list[TableRow]:
    """Return one row for each kind of IoU, box or mask, with the means over all classes."""
    rows = []
    for kind, metrics in evaluation.by_kind().items():
        row = {"IoU": kind}
        for name in TABLE_METRICS:
            row[name] = format_percent(metrics[name]) if name in metrics else ""
        rows.append(row)
    return rows


def class_rows(evaluation: CocoEvaluation) -> list[TableRow]:
    """Return one row for each class that has objects in the split."""
    rows = []
    for row in evaluation.per_class:
        if row.objects:
            rows.append(
                {
                    "class": row.name,
                    "AP": format_percent(row.AP),
                    "AP50": format_percent(row.AP50),
                    "objects": str(row.objects),
                    "images": str(row.images),
                }
            )
    return rows


def group_rows(groups: Sequence[CocoEvaluation]) -> list[TableRow]:
    """Return one row for each group."""
    rows = []
    for index, group in enumerate(groups):
        row = {"group": str(index)}
        for name in TABLE_METRICS:
            row[name] = format_percent(group.stats[name])
        rows.append(row)
    return rows
