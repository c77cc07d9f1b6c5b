"""Evaluating a detector of scenes: as it is used, and every group by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from groupdetr.commands.val_ import Options
from groupdetr.data.nuscenes.version import NuScenes, load
from groupdetr.engine.evaluate import find, running
from groupdetr.engine.machine import accelerator, loader_workers
from groupdetr.engine.run import own_data, write_json
from groupdetr.evaluation.nuscenes import Evaluation
from groupdetr.evaluation.nuscenes_results import write_results
from groupdetr.settings import Settings
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
    content = {"split": options.split, **evaluation.to_json()}
    if options.per_group:
        content["per_group"] = [task.evaluate(each).to_json() for each in by_group(detector, ask)]
    write_json(folder / "metrics.json", content)
    world = [in_the_world(each, sample) for each, sample in zip(found, samples)]
    write_results(folder / "predictions.json", [sample.token for sample in samples], world)
    if not options.json:
        show(evaluation, folder)
    return content


def by_group(detector: SceneDetector, ask: Callable[[], list[Found]]) -> Iterator[list[Found]]:
    """What each group finds alone."""
    for group in range(detector.recipe.num_groups):
        with running(detector.model, group):
            yield ask()


def chosen_split(options: Options) -> NuScenes:
    """The split to evaluate."""
    return load(options.data or own_data(options.run_, "add --data DATA")[0], options.split)


def show(evaluation: Evaluation, folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    names = [*evaluation.stats]
    overall = Table(*names, box=None, pad_edge=False)
    overall.add_row(*(f"{evaluation.stats[name]:.3f}" for name in names))
    rows = Table("class", "AP", "objects", box=None, pad_edge=False)
    for row in evaluation.per_class:
        rows.add_row(row.name, f"{100 * row.AP:.1f}", str(row.objects))
    console.print(overall, rows, f"written to {folder}")
