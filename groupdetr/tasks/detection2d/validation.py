"""Evaluating a trained detector: as it is used, and every group by itself."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from groupdetr.cli.options.val import Options
from groupdetr.data.formats import DataSet
from groupdetr.data.records import Category
from groupdetr.engine.accelerator import accelerator, loader_workers
from groupdetr.engine.inference import find, running
from groupdetr.engine.progress import percent
from groupdetr.engine.run_folder import own_data, write_json, write_text
from groupdetr.errors import UsageError
from groupdetr.evaluation.coco import Evaluation, to_coco_results
from groupdetr.settings import Settings
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.task import DetectionTask

FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


@dataclass
class Validation:
    """What came out. ``groups``: the evaluation of each group, if asked for."""

    data: DataSet
    found: list[Detections]
    evaluation: Evaluation
    groups: list[Evaluation]


def validate(options: Options) -> dict[str, Any]:
    """Run the detector over the split, print and write what it is worth; returns what metrics.json holds."""
    return written(options, evaluated(options))


def evaluated(options: Options) -> Validation:
    settings = Settings(device=options.device, workers=options.workers)
    machine = accelerator(settings)
    detector = Detector(options.run_, str(machine.device), options.imgsz)
    data = chosen_split(options, detector)
    task = detector.task_on(data)
    everything = detections(detector, task, machine, options)
    evaluations = [task.evaluate(found) for found in everything]
    return Validation(data, everything[0], evaluations[0], evaluations[1:])


def chosen_split(options: Options, detector: Detector) -> DataSet:
    """The split to evaluate, in the place of val, with labels that are rows of the detector's head.

    The detector may know more classes: an imported COCO model has 91 rows, of which a data set uses some.
    """
    given = (options.data, options.images) if options.data else None
    root, images = given or own_data(options.run_, "add --data DATA")
    data = detector.task.read(root, images)
    if options.split not in data.splits:
        raise UsageError(
            f"there is no split {options.split!r}",
            str(root),
            f"choose from {', '.join(data.splits)}",
        )
    known = {
        category.id: category
        for category in (Category(key, name) for key, name in detector.categories)
    }
    strange = [
        c
        for c in data.categories
        if c.id not in known or known[c.id].name.casefold() != c.name.casefold()
    ]
    if strange:
        raise UsageError(
            f"the detector does not know {', '.join(f'{c.name} (id {c.id})' for c in strange[:10])}",
            str(root),
            f"it knows {', '.join(f'{c.name} (id {c.id})' for c in list(known.values())[:100])}",
        )
    split = data.splits[options.split].with_categories(tuple(known.values()))
    return DataSet(data.root, {"train": split, "val": split})


def detections(
    detector: Detector, task: DetectionTask, machine: Accelerator, options: Options
) -> list[list[Detections]]:
    """What the detector finds; and then, if asked for, what each of its groups finds alone."""
    workers = loader_workers(Settings(workers=options.workers))
    everything = [find(detector.model, task, machine, options.batch, workers)]
    for group in range(detector.recipe.num_groups) if options.per_group else ():
        with running(detector.model, group):
            everything.append(find(detector.model, task, machine, options.batch, workers))
    return everything


def written(options: Options, validation: Validation) -> dict[str, Any]:
    """Print the tables and write the files; returns what metrics.json holds."""
    folder = options.folder
    evaluation = validation.evaluation
    content = {"split": options.split, **evaluation.to_json()}
    if validation.groups:
        content["per_group"] = [group.to_json() for group in validation.groups]
        write_text(folder / "per_group.csv", as_csv(group_rows(validation.groups)))
    write_json(folder / "metrics.json", content)
    write_text(folder / "per_class.csv", as_csv(class_rows(evaluation)))
    write_json(
        folder / "predictions.json",
        to_coco_results(validation.data.splits["val"], validation.found),
    )
    if not options.json:
        show(validation, folder)
    return content


def show(validation: Validation, folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(as_table(figure_rows(validation.evaluation)))
    console.print(as_table(class_rows(validation.evaluation)))
    if validation.groups:
        console.print(as_table(group_rows(validation.groups)))
        aps = [100 * group.stats["AP"] for group in validation.groups]
        console.print(
            f"groups: median AP {statistics.median(aps):.1f}, from {min(aps):.1f} to {max(aps):.1f}"
        )
    console.print(f"written to {folder}")


def figure_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """One row for each kind of AP."""
    return [
        {"of": kind} | {name: percent(figures[name]) if name in figures else "" for name in FIGURES}
        for kind, figures in evaluation.by_kind().items()
    ]


def class_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """One row for each class that the split shows."""
    rows = []
    for row in evaluation.per_class:
        if not row.objects:
            continue
        figures = {"AP": percent(row.AP), "AP50": percent(row.AP50)}
        rows.append(
            {"class": row.name, **figures, "objects": str(row.objects), "images": str(row.images)}
        )
    return rows


def group_rows(groups: list[Evaluation]) -> list[dict[str, str]]:
    return [
        {"group": str(k), **{name: percent(group.stats[name]) for name in FIGURES}}
        for k, group in enumerate(groups)
    ]


def as_table(rows: list[dict[str, str]]) -> Table:
    table = Table(*(rows[0] if rows else ()), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row.values())
    return table


def as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
