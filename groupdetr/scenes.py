"""What verbs do with a detector of scenes: the page of its run, and its evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from groupdetr.commands.val_ import Options
from groupdetr.data.images import load_image
from groupdetr.data.nuscenes.names import CAMERAS, CLASSES
from groupdetr.data.nuscenes.version import NuScenes
from groupdetr.engine.evaluate import evaluating, find, running
from groupdetr.engine.machine import accelerator, environment, loader_workers
from groupdetr.engine.run import RunFolder, is_evaluation, write_json
from groupdetr.errors import UsageError
from groupdetr.evaluation.nuscenes import Evaluation
from groupdetr.evaluation.nuscenes_results import write_results
from groupdetr.predictor import Detector
from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.page import Cell, Column, Html, Picture, Tile, facts, page, section, table, tiles, wide
from groupdetr.report.scenes import Solids, draw_scene
from groupdetr.settings import Settings
from groupdetr.tasks.detection3d import Detection3DTask, Found, in_the_world

PANELS = 4  # scenes on the page
SURE = 0.3  # the least score that is drawn
ERRORS = ("mATE", "mASE", "mAOE", "mAVE", "mAAE")


def report_scenes(run: RunFolder) -> Path:
    """Write report.html of a run that has been evaluated at least once."""
    config, card = run.read_config(), json.loads(run.data.read_text())
    detector = Detector(run.path, "cpu")
    task: Detection3DTask = detector.task_on(detector.task.read(config["data"], None))
    evaluation = Evaluation.from_json(json.loads((run.val / "metrics.json").read_text()))
    splits = {name: f"{split['images']} samples of {split['version']}" for name, split in card["splits"].items()}
    lead = f"{config['model']}, trained with {detector.recipe.num_groups} groups of queries on scenes of six cameras."
    body = [
        headline(evaluation),
        section("Learning", charts(list(curves(run)))),
        section("Every class", classes(evaluation)),
        section("What it finds", wide([*panels(detector, task)])),
        section("Data", facts({"data": card["root"], **splits})),
        section("Run", facts({**config["settings"], "command": environment()["command"]})),
    ]
    run.report.write_text(page("groupdetr run", run.path.name, lead, body), encoding="utf-8")
    return run.report


def headline(evaluation: Evaluation) -> Html:
    scores = [Tile(name, f"{100 * evaluation.stats[name]:.1f}", strong=name == "NDS") for name in ("NDS", "mAP")]
    return tiles([*scores, *(Tile(name, f"{evaluation.stats[name]:.2f}") for name in ERRORS)])


def curves(run: RunFolder) -> Iterator[Chart]:
    evaluated = [record for record in run.records() if is_evaluation(record)]
    steps = [record for record in run.records() if not is_evaluation(record)]
    epochs = [record["epoch"] for record in evaluated]
    scores = [Series(name, epochs, [100 * record[name] for record in evaluated]) for name in ("NDS", "mAP")]
    yield Chart("NDS and mAP on the validation samples", "epoch", "points", scores)
    losses = Series("loss", [record["epoch"] for record in steps], [record["loss"] for record in steps])
    yield Chart("Training loss", "epoch", "loss", [losses])


def classes(evaluation: Evaluation) -> Html:
    errors = [name.removeprefix("m") for name in ERRORS]
    head = [Column("class"), Column("AP", 1), *(Column(name, 2) for name in errors), Column("objects", 0)]
    rows: list[list[Cell]] = [
        [row.name, 100 * row.AP, *(getattr(row, name) for name in errors), row.objects] for row in evaluation.per_class
    ]
    return table(head, rows, "AP in points, errors of hits within two metres; a dash where there is no such error.")


def panels(detector: Detector, task: Detection3DTask) -> Iterator[Picture]:
    """Samples with what is found in them, what is there in white."""
    for index in range(min(PANELS, len(task.val))):
        sample = task.val.samples[index]
        (found,) = found_in(detector, task, [index])
        sure = found.scores >= SURE
        frame, (boxes, labels) = sample.frame(), sample.objects()
        captions = [f"{CLASSES[i]} {s:.2f}" for i, s in zip(found.labels[sure], found.scores[sure])]
        seen = Solids(found.boxes[sure].numpy(), found.labels[sure].numpy(), captions)
        pictures: list[Image.Image] = [load_image(path) for path in frame.paths[: len(CAMERAS)]]
        drawn = draw_scene(pictures, frame.lidar_to_image[: len(CAMERAS)], seen, Solids(boxes), CLASSES, width=480)
        yield Picture(drawn, sample.scene, f"{len(labels)} objects, {int(sure.sum())} found with a score of {SURE:g}")


def found_in(detector: Detector, task: Detection3DTask, indices: Sequence[int]) -> list[Found]:
    """Of val samples."""
    batch = task.val.collate([task.val[index] for index in indices])
    with evaluating(detector.model):
        return task.postprocess(detector.model(batch.images(torch.device(detector.device))).answer, batch.indices)


def validate_scenes(options: Options) -> dict[str, Any]:
    """Run the detector over the split, print and write what it is worth; returns what metrics.json holds."""
    machine = accelerator(Settings(device=options.device, workers=options.workers))
    detector = Detector(options.run_, str(machine.device), options.imgsz)
    data = chosen_split(options, detector)
    task: Detection3DTask = detector.task_on(data)
    found = find(detector.model, task, machine, options.batch, loader_workers(Settings(workers=options.workers)))
    evaluation = task.evaluate(found)
    folder = options.out or (options.run_ if options.run_.is_dir() else options.run_.parent) / "val"
    content = {"split": options.split, **evaluation.to_json()}
    if options.per_group:
        content["per_group"] = [task.evaluate(each).to_json() for each in by_group(detector, task, options)]
    write_json(folder / "metrics.json", content)
    samples = task.val.samples
    world = [in_the_world(each, sample) for each, sample in zip(found, samples)]
    write_results(folder / "predictions.json", [sample.token for sample in samples], world)
    if not options.json:
        show(evaluation, folder)
    return content


def by_group(detector: Detector, task: Detection3DTask, options: Options) -> Iterator[list[Found]]:
    """What each group finds alone."""
    machine, workers = accelerator(Settings(device=options.device)), loader_workers(Settings(workers=options.workers))
    for group in range(detector.recipe.num_groups):
        with running(detector.model, group):
            yield find(detector.model, task, machine, options.batch, workers)


def chosen_split(options: Options, detector: Detector) -> NuScenes:
    """The split to evaluate, in the place of val."""
    config = RunFolder.existing(options.run_).read_config() if options.run_.is_dir() else {}
    root = options.data or config.get("data")
    if root is None:
        raise UsageError("no data set given", remedy="add --data DATA")
    data: NuScenes = detector.task.read(Path(root), None)
    if options.split not in data.splits:
        raise UsageError(f"there is no split {options.split!r}", str(root), f"choose from {', '.join(data.splits)}")
    return NuScenes(data.root, data.version, {"train": data.splits["train"], "val": data.splits[options.split]})


def show(evaluation: Evaluation, folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    names = [*evaluation.stats]
    overall = Table(*names, box=None, pad_edge=False)
    overall.add_row(*(f"{evaluation.stats[name]:.3f}" for name in names))
    rows = Table("class", "AP", "objects", box=None, pad_edge=False)
    for row in evaluation.per_class:
        rows.add_row(row.name, f"{100 * row.AP:.1f}", str(row.objects))
    console.print(overall, rows, f"written to {folder}")
