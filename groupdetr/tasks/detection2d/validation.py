"""Evaluation of a trained detector of images, and of each of its groups (`groupdetr val`)."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from groupdetr.analysis.box_fusion import fuse_groups
from groupdetr.analysis.group_pass import detect_groups_alone
from groupdetr.console.output import create_console
from groupdetr.console.progress import CountProgress, format_percent
from groupdetr.console.text import quantity
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.records import Category, CocoSplit
from groupdetr.engine.accelerator import create_single_accelerator, loader_workers
from groupdetr.engine.inference import map_dataset
from groupdetr.engine.run_folder import training_data, write_json, write_text
from groupdetr.errors import UsageError
from groupdetr.evaluation.coco import CocoEvaluation, to_coco_results
from groupdetr.report.run import write_evaluation_report
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.all_groups import expect_objects
from groupdetr.tasks.detection2d.group_vote import voting_groups
from groupdetr.tasks.detection2d.image_detector import ImageDetector
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.report import image_loader
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.output_files import expect_outside_dataset
from groupdetr.tasks.result_formats import Metrics, MetricsTable, TableRow, format_csv

TABLE_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")  # of the printed tables
NO_ANNOTATIONS = (
    "no metrics: the split has no annotations; predictions.json has the detections as COCO results"
)
MAX_UNKNOWN_CLASSES, MAX_KNOWN_CLASSES = 10, 100  # that an error message lists


@dataclass
class Validation:
    """The detections in a split and their evaluation."""

    split: CocoSplit  # its labels are class indices of the detector
    detections: list[Detections]
    evaluation: CocoEvaluation
    groups: list[CocoEvaluation]  # of every group alone; empty without --per-group


def validate(
    run: Path,
    *,
    data: Path | None,
    images: Path | None,
    cache: bool,
    split: str | None,
    per_group: bool,
    vote: int | None,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    device: str,
    precision: str,
    out: Path,
) -> Metrics:
    """Evaluate a detector on a split, write files, and return what metrics.json holds.

    ``run`` is the folder of a run or a weights file. Without ``data`` the dataset of the run is
    used; ``images`` is the folder of images if ``data`` is an annotation file. ``cache`` as in
    `groupdetr.data.layouts.load`. ``split`` None is val, or all images of a file that has no name
    of a split. ``per_group`` also evaluates every group of queries alone. With ``vote``, the
    detections are those of this number of groups, fused. ``precision`` is that of `Detector`. Files
    go to the folder ``out``. All metrics of a split without annotations are undefined.
    """
    accelerator = create_single_accelerator(device)
    detector = Detector(run, str(accelerator.device), imgsz, vote=vote, precision=precision)
    if detector.precision_choice is not None:
        create_console().print(str(detector.precision_choice))
    accelerator = create_single_accelerator(device, detector.precision)
    if data is None:
        data, images = training_data(run, "add --data DATA")
        evaluated, part = read_own_split(detector, data, images, split or "val", cache)
    else:
        evaluated, part = read_named_split(detector, data, images, split, cache)
    expect_outside_split(out, data, evaluated)
    if per_group:
        remedy = "leave out --per-group, or name a split with annotations of objects"
        expect_objects(evaluated.records, evaluated.annotation_file, remedy)
    evaluated = with_classes_of(detector, evaluated)
    task = evaluation_task(detector, evaluated)

    num_groups, answering = detector.recipe.num_groups, detector.recipe.inference_group
    voting = [] if vote is None else voting_groups(num_groups, vote, answering)
    needed = [*range(num_groups)] if per_group else sorted(voting)
    groups = []
    kept: dict[int, list[Detections]] = {}  # the detections of groups that are part of the result
    for group, detected in detect_groups(detector, task, accelerator, needed, batch, workers):
        if per_group:
            groups.append(task.evaluate(detected))
        if group in voting or group == answering:
            kept[group] = detected
    if voting:
        votes = zip(*(kept[group] for group in voting))
        detections = [fuse_groups(of_image, task.num_detections).detections for of_image in votes]
    elif answering in kept:
        detections = kept[answering]
    else:
        detections = detect(detector, task, accelerator, batch, workers)
    validation = Validation(evaluated, detections, task.evaluate(detections), groups)

    details: JsonObject = {}
    if vote is not None:
        details["vote"] = vote
    if detector.precision != "fp32":
        details["inference_precision"] = detector.precision
    return write_validation(validation, detector.path, data, part, out, details)


def read_named_split(
    detector: ImageDetector, data: Path, images: Path | None, split: str | None, cache: bool
) -> tuple[CocoSplit, str]:
    """Return a split of a dataset that the user named, and a text that names the split.

    ``split`` and ``cache`` as in `validate`.
    """
    named = detector.task.read_split(data, images, split, cache)
    part = "all images" if named.name == "all" else f"split {named.name}"
    return named, part


def expect_outside_split(out: Path, data: Path, split: CocoSplit) -> None:
    """Raise `UsageError` if the folder ``out`` is inside of the dataset that a split belongs to."""
    annotations = [split.annotation_file.parent] if data.is_dir() else []
    expect_outside_dataset(out, [data, split.images_dir, *annotations])


def evaluation_task(detector: ImageDetector, split: CocoSplit) -> DetectionTask:
    """Return the task of a detector with this split as its validation set.

    Its labels are class indices of the detector.
    """
    splits = {"train": split, "val": split}
    return detector.create_task(DatasetSplits(split.annotation_file, splits))


def read_own_split(
    detector: ImageDetector, root: Path, images: Path | None, split: str, cache: bool
) -> tuple[CocoSplit, str]:
    """Return a split of the dataset that a run was trained on, and a text that names it.

    The splits are those of the training: if the dataset has no val split, the images that were held
    out of train are val.
    """
    data = detector.task.read(root, images, cache)
    if split not in data.splits:
        raise UsageError(
            f"there is no split {split!r}", str(root), f"choose from {', '.join(data.splits)}"
        )
    part = f"split {split}"
    if data.held_out and split in ("train", "val"):
        total = len(data.splits["train"]) + len(data.splits["val"])
        verb = "held out" if split == "val" else "used"
        part = f"those of {total} that the training {verb}, split {split}"
    return data.splits[split], part


def with_classes_of(detector: ImageDetector, split: CocoSplit) -> CocoSplit:
    """Return a split whose labels are class indices of the detector.

    The detector may have more classes than the dataset: an imported COCO model has 91 class
    indices, and a dataset may use some of them. If the ids of the dataset are others, but the names
    of all categories with boxes are those of classes, they are matched by name: the training of
    others renumbers the categories. A class that the detector does not have is a `UsageError` if a
    box has it.
    """
    classes = [Category(category_id, name) for category_id, name in detector.categories]
    if not has_same_ids(split.used_categories(), classes):
        renumbered = with_ids_of(split, classes)
        if renumbered is not None:
            logging.getLogger("groupdetr").warning(
                "the categories of the dataset have other ids than the classes of the detector; "
                "they are matched by name"
            )
            return split.with_categories(renumbered)
    known_ids = {category.id for category in classes}
    used = split.used_categories()
    # Other categories without boxes do not affect the metrics, such as a parent of all classes.
    categories = [item for item in split.categories if item.id in known_ids or item in used]
    expect_known_classes(categories, classes, split.annotation_file)
    return split.with_categories(tuple(classes))


def has_same_ids(categories: Sequence[Category], classes: Sequence[Category]) -> bool:
    """True if every category has the id and, without case, the name of a class."""
    known = {(item.id, item.name.casefold()) for item in classes}
    return all((item.id, item.name.casefold()) in known for item in categories)


def with_ids_of(split: CocoSplit, classes: Sequence[Category]) -> tuple[Category, ...] | None:
    """Return the classes with the ids of the split's categories of the same names.

    Classes that the split does not have get ids that it does not use. None if a category with an
    annotation has no such class, or if names are not unique.
    """
    names = [item.name.casefold() for item in classes]
    id_of_name = {item.name.casefold(): item.id for item in split.categories}
    used = [item.name.casefold() for item in split.used_categories()]
    are_unique = all(names.count(name) == 1 for name in used)
    if not are_unique or len(id_of_name) != len(split.categories):
        return None
    unused_id = max([0, *(item.id for item in split.categories if isinstance(item.id, int))])
    renumbered = []
    for item, name in zip(classes, names):
        if name in id_of_name and names.count(name) == 1:
            category_id = id_of_name[name]
        else:
            unused_id += 1
            category_id = unused_id
        renumbered.append(Category(category_id, item.name))
    return tuple(renumbered)


def expect_known_classes(
    categories: Sequence[Category], classes: Sequence[Category], file: Path
) -> None:
    """Raise `UsageError` if the detector's classes lack a category with the same id and name.

    Upper and lower case do not matter. ``file`` is the annotation file with the categories.
    """
    name_of_id = {category.id: category.name.casefold() for category in classes}
    unknown = []
    for category in categories:
        if name_of_id.get(category.id) != category.name.casefold():
            unknown.append(category)
    if unknown:
        raise UsageError(
            f"the detector has no class {_list_categories(unknown[:MAX_UNKNOWN_CLASSES])}",
            str(file),
            "rename or remove these categories; the classes of the detector are "
            f"{_list_categories(classes[:MAX_KNOWN_CLASSES])}",
        )


def _list_categories(categories: Sequence[Category]) -> str:
    return ", ".join(f"{category.name} (id {category.id})" for category in categories)


def detect(
    detector: ImageDetector,
    task: DetectionTask,
    accelerator: Accelerator,
    batch: int,
    workers: int | None,
) -> list[Detections]:
    """Return the detections of the detector in every image of ``val``."""
    num_workers = loader_workers(workers)
    with CountProgress("val") as progress:
        predict_batch = partial(detector.detect_batch, task)
        return map_dataset(predict_batch, task, accelerator, batch, num_workers, progress)


def detect_groups(
    detector: Detector,
    task: DetectionTask,
    accelerator: Accelerator,
    groups: Sequence[int],
    batch: int,
    workers: int | None,
) -> Iterator[tuple[int, list[Detections]]]:
    """Yield each of ``groups`` with its detections in every image of ``val``, as if it was alone.

    ``groups`` are numbers in rising order. The boxes of all of them are detected in one pass. Masks
    are detected group by group: those of all groups would need K times the memory of one, and one
    pass would save a fifth of the time (six groups of mask2former-lite, 300 images).
    """
    at_once = max(1, len(groups)) if task.kind == "box" else 1
    for start in range(0, len(groups), at_once):
        numbers = groups[start : start + at_once]
        detections = detect_groups_alone(
            detector.model, task, accelerator, numbers, batch, loader_workers(workers), "val"
        )
        yield from zip(numbers, detections)


def write_validation(
    validation: Validation,
    weights: Path,
    data: Path,
    part: str,
    out: Path,
    details: JsonObject,
    note: str = "",
) -> Metrics:
    """Write all files of an evaluation to the folder ``out``, and return what metrics.json holds.

    ``weights`` is the file of the detector, ``data`` the dataset, and ``part`` the text that names
    the split. ``details`` are more items of metrics.json, and ``note`` is a line below the metrics.
    """
    split = validation.split
    subject = {
        "split": split.name,
        "weights": str(weights),
        "data": str(data),
        "images": len(split),
        **details,
    }
    content = write_results(validation, subject, out)
    write_page(validation, out, str(weights), part)
    line = f"{quantity(len(split), 'image')}: {part} of {split.annotation_file}"
    shown = tables(validation)
    if not any(len(record.labels) for record in split.records):
        shown = [MetricsTable((), NO_ANNOTATIONS)]
    if note:
        shown.append(MetricsTable((), note))
    return Metrics(content, shown, out, line)


def write_results(validation: Validation, subject: JsonObject, folder: Path) -> JsonObject:
    """Write metrics.json, predictions.json and the CSV files; return what metrics.json holds.

    ``subject`` says what was evaluated. It is a part of metrics.json.
    """
    content = {**subject, **validation.evaluation.to_json()}
    if validation.groups:
        content["per_group"] = [group.to_json() for group in validation.groups]
        write_text(folder / "per_group.csv", format_csv(group_rows(validation.groups)))
    write_json(folder / "metrics.json", content)
    write_text(folder / "per_class.csv", format_csv(class_rows(validation.evaluation)))
    results = to_coco_results(validation.split, validation.detections)
    write_json(folder / "predictions.json", results)
    return content


def write_page(validation: Validation, folder: Path, weights: str, part: str) -> None:
    """Write errors.json and report.html, or remove those of earlier detections.

    A split without objects has neither.
    """
    evaluation = validation.evaluation
    details = evaluation.details()
    files = [folder / "errors.json", folder / "report.html"]
    if details is None:
        for file in files:
            file.unlink(missing_ok=True)
        return
    write_json(files[0], details)
    split = validation.split
    lead = (
        f"{quantity(len(split), 'image')}: {part} of {split.annotation_file}. Weights: {weights}."
    )
    write_evaluation_report(
        files[1], f"Evaluation of {split.name}", lead, evaluation, image_loader(split.records)
    )


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
