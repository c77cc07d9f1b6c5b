"""Evaluation of a trained 3D detector, and of each of its groups (`groupdetr val`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from groupdetr.analysis.group_pass import detect_groups_alone
from groupdetr.console.progress import CountProgress
from groupdetr.console.text import quantity, quote
from groupdetr.data.nuscenes.version import NuScenes, load, refuse_image_folder
from groupdetr.engine.accelerator import create_single_accelerator, loader_workers
from groupdetr.engine.inference import run_inference
from groupdetr.engine.run_folder import training_data, write_json, write_text
from groupdetr.errors import UsageError
from groupdetr.evaluation.nuscenes import ERRORS, NuScenesEvaluation
from groupdetr.evaluation.nuscenes_results import write_results
from groupdetr.structures.detections3d import Detections3D
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection3d.prediction import SceneDetector
from groupdetr.tasks.detection3d.task import Detection3DTask, to_global_frame
from groupdetr.tasks.output_files import dataset_folders, expect_outside_dataset
from groupdetr.tasks.result_formats import Metrics, MetricsTable, TableRow, format_csv


def validate(
    run: Path,
    *,
    data: Path | None,
    images: Path | None,
    cache: bool,
    split: str | None,
    per_group: bool,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    device: str,
    out: Path,
) -> Metrics:
    """Evaluate a 3D detector on a split, write files to the folder ``out``, and return the metrics.

    ``data`` is the folder of a nuScenes version; None: the data of the run. ``split`` None is val.
    With ``per_group``, every group is also evaluated alone. The files are metrics.json, whose
    content is returned, per_class.csv, per_group.csv with ``per_group``, and predictions.json, a
    result file as the devkit of nuScenes reads it. ``images`` must be None. ``cache`` is for COCO
    files and has no effect here.
    """
    refuse_image_folder(images)
    if data is None:
        data, _ = training_data(run, "add --data DATA")
    split = split or "val"
    accelerator = create_single_accelerator(device)
    detector = SceneDetector(run, str(accelerator.device), imgsz)
    remedy = (
        f"to see the predictions: groupdetr predict {quote(run)} {quote(data)} "
        f"--split {quote(split)}"
    )
    dataset = load_split(data, split, remedy)
    expect_outside_dataset(out, dataset_folders(dataset.metadata()))
    task = detector.create_task(dataset)
    num_workers = loader_workers(workers)
    answering = detector.recipe.inference_group
    by_group: list[list[Detections3D]] = []
    if per_group:
        groups = range(detector.recipe.num_groups)
        by_group = detect_groups_alone(
            detector.model, task, accelerator, groups, batch, num_workers, "val"
        )
    if by_group and answering is not None:
        detections = by_group[answering]
    else:
        with CountProgress("val") as progress:
            detections = run_inference(
                detector.model, task, accelerator, batch, num_workers, progress
            )
    evaluations = [task.evaluate(of_group) for of_group in by_group]

    return write_validation(task, detections, evaluations, detector.path, data, split, out)


def write_validation(
    task: Detection3DTask,
    detections: Sequence[Detections3D],
    groups: Sequence[NuScenesEvaluation],
    weights: Path,
    data: Path,
    split: str,
    out: Path,
    details: JsonObject | None = None,
    note: str = "",
) -> Metrics:
    """Write all files of an evaluation to the folder ``out``, and return what metrics.json holds.

    ``detections`` are those in the validation samples of ``task``, and ``groups`` the evaluations
    of each group, if there are any. ``weights`` is the file of the detector, and ``data`` the
    dataset. ``details`` are more items of metrics.json, and ``note`` is a line below the metrics.
    """
    evaluation = task.evaluate(detections)
    content = {
        "split": split,
        "weights": str(weights),
        "data": str(data),
        "images": len(task.val),
        **(details or {}),
        **evaluation.to_json(),
    }
    if groups:
        content["per_group"] = [group.to_json() for group in groups]
        write_text(out / "per_group.csv", format_csv(group_rows(groups)))
    write_json(out / "metrics.json", content)
    write_text(out / "per_class.csv", format_csv(class_rows(evaluation)))
    samples = task.val.samples
    boxes = []
    for sample_detections, sample in zip(detections, samples):
        boxes.append(to_global_frame(sample_detections, sample))
    write_results(out / "predictions.json", [sample.token for sample in samples], boxes)
    tables = [MetricsTable([summary_row(evaluation)]), MetricsTable(class_rows(evaluation))]
    if groups:
        tables.append(MetricsTable(group_rows(groups)))
    if note:
        tables.append(MetricsTable((), note))
    line = f"{quantity(len(samples), 'sample')}: split {split} of {data}"
    return Metrics(content, tables, out, line)


def load_split(root: Path, split: str, remedy: str) -> NuScenes:
    """Return the dataset whose val split is the split to evaluate.

    `UsageError` with this ``remedy`` if it has no object to evaluate.
    """
    dataset = load(root, split)
    if not any(sample.truth.trainable.any() for sample in dataset.splits["val"]):
        raise UsageError(f"split {split!r} has no object to evaluate", str(root), remedy)
    return dataset


def summary_row(evaluation: NuScenesEvaluation) -> TableRow:
    """Return the metrics of all classes together as text, by name."""
    return {name: format_metric(value) for name, value in evaluation.stats.items()}


def format_metric(value: float) -> str:
    """Return three decimals, or a dash if the metric is undefined: an error without any match."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def class_rows(evaluation: NuScenesEvaluation) -> list[TableRow]:
    """Return one row for each class: its AP, the mean errors of its matches, and its objects."""
    rows = []
    for score in evaluation.per_class:
        row = {"class": score.name, "AP": format_metric(score.AP)}
        for name in ERRORS:
            row[name] = format_metric(getattr(score, name))
        row["objects"] = str(score.objects)
        rows.append(row)
    return rows


def group_rows(groups: Sequence[NuScenesEvaluation]) -> list[TableRow]:
    """Return one row for each group."""
    rows = []
    for index, group in enumerate(groups):
        rows.append({"group": str(index)} | summary_row(group))
    return rows
