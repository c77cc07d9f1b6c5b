"""Evaluating a detector of scenes: as it is used, and every group by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from groupdetr.cli.options.val import Options
from groupdetr.data.nuscenes.version import NuScenes, load
from groupdetr.engine.accelerator import accelerator, loader_workers
from groupdetr.engine.inference import find, running
from groupdetr.engine.run_folder import own_data, write_json, write_text
from groupdetr.errors import UsageError
from groupdetr.evaluation.nuscenes import ERRORS, Evaluation
from groupdetr.evaluation.nuscenes_results import write_results
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.validation import as_csv, as_table
from groupdetr.tasks.detection3d.prediction import SceneDetector
from groupdetr.tasks.detection3d.task import Detection3DTask, Found, in_the_world


def validate(options: Options) -> dict[str, Any]:
    """Run the detector over the split, print and write what it is worth; returns what metrics.json holds."""
    settings = Settings(device=options.device, workers=options.workers)
    machine = accelerator(settings)
    detector = SceneDetector(options.run_, str(machine.device), options.imgsz)
    data = chosen_split(options)
    task: Detection3DTask = detector.task_on(data)
    ask = partial(find, detector.model, task, machine, options.batch, loader_workers(settings))
    found = ask()
    evaluation = task.evaluate(found)
    folder, samples = options.folder, task.val.samples
    groups = [task.evaluate(each) for each in by_group(detector, ask)] if options.per_group else []
    content = {"split": options.split, **evaluation.to_json()}
    if groups:
        content["per_group"] = [group.to_json() for group in groups]
        write_text(folder / "per_group.csv", as_csv(group_rows(groups)))
    write_json(folder / "metrics.json", content)
    write_text(folder / "per_class.csv", as_csv(class_rows(evaluation)))
    world = [in_the_world(each, sample) for each, sample in zip(found, samples)]
    write_results(folder / "predictions.json", [sample.token for sample in samples], world)
    if not options.json:
        show(evaluation, groups, folder)
    return content


def by_group(detector: SceneDetector, ask: Callable[[], list[Found]]) -> Iterator[list[Found]]:
    """What each group finds alone."""
    for group in range(detector.recipe.num_groups):
        with running(detector.model, group):
            yield ask()


def chosen_split(options: Options) -> NuScenes:
    """The split to evaluate, in the place of val."""
    root = options.data or own_data(options.run_, "add --data DATA")[0]
    data = load(root, options.split)
    if not any(sample.truth.learned.any() for sample in data.splits["val"]):
        remedy = f"look at what is found: groupdetr predict {options.run_} {root} --split {options.split}"
        raise UsageError(
            f"split {options.split!r} has no object that can be found", str(root), remedy
        )
    return data


def show(evaluation: Evaluation, groups: list[Evaluation], folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    tables = (
        [figures(evaluation)],
        class_rows(evaluation),
        *([group_rows(groups)] if groups else []),
    )
    console.print(*map(as_table, tables), f"written to {folder}", sep="\n")


def figures(evaluation: Evaluation) -> dict[str, str]:
    return {name: number(value) for name, value in evaluation.stats.items()}


def number(value: float) -> str:
    """A dash where it is undefined: an error without hits."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def class_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """One row for each class, with the errors of its hits."""
    return [
        {
            "class": row.name,
            "AP": number(row.AP),
            **{name: number(getattr(row, name)) for name in ERRORS},
        }
        | {"objects": str(row.objects)}
        for row in evaluation.per_class
    ]


def group_rows(groups: list[Evaluation]) -> list[dict[str, str]]:
    return [{"group": str(k)} | figures(group) for k, group in enumerate(groups)]
