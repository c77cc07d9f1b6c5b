"""From the folder of a run to what its page shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from groupdetr.data.images import load_image
from groupdetr.engine.machine import environment
from groupdetr.engine.run import RunFolder, is_evaluation
from groupdetr.evaluation.coco import BOX_FIGURES, FIGURES, Evaluation
from groupdetr.experiments import experiment
from groupdetr.predictor import Detector
from groupdetr.report.comparison import RunSummary
from groupdetr.report.panels import DetectionPanel
from groupdetr.report.run import RunReport, write_run_report
from groupdetr.scenes import report_scenes
from groupdetr.tasks.detection import DetectionTask

PANELS = 8  # pictures on the page


def report_run(run: RunFolder) -> Path:
    """Write report.html of a run that has been evaluated at least once."""
    of_scenes = experiment(run.read_config()["model"]).task.kind == "space"
    return report_scenes(run) if of_scenes else report_pictures(run)


def report_pictures(run: RunFolder) -> Path:
    """Of detections in pictures."""
    config = run.read_config()
    detector = Detector(run.path, "cpu")
    task = detector.task_on(detector.task.read(config["data"], config["images"]))
    panels = [detection_panel(task, {"found": detector}, index) for index in range(min(PANELS, len(task.val)))]
    card = json.loads(run.data.read_text())
    splits = {name: f"{split['images']} pictures" for name, split in card["splits"].items()}
    machine = environment()
    about = {
        "groups": f"{detector.recipe.num_groups} of {detector.recipe.num_queries} queries",
        **config["settings"],
        "versions": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "command": machine["command"],
    }
    content = RunReport(
        run.path.name, config["model"], summary(run), evaluation(run), detector.names, panels,
        {"data": card["root"], **splits, "classes": len(card["categories"])}, about,
    )  # fmt: skip
    write_run_report(run.report, content)
    return run.report


def summary(run: RunFolder) -> RunSummary:
    """A training's log as reports want it: nan where a figure is undefined."""
    config, records = run.read_config(), run.records()
    curve = [
        {name: math.nan if value is None else value for name, value in row.items() if name != "losses"}
        for row in with_losses(records)
    ]
    last = curve[-1]
    figures = {name: last[name] for name in (*FIGURES, *BOX_FIGURES) if name in last}
    groups, seed = int(config["groups"]), int(config["settings"]["seed"])
    return RunSummary(groups, seed, round(last["epoch"]), last["seconds"], last["peak_memory_mb"], figures, curve)


def with_losses(records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The evaluations, each with the mean loss and the rate of the steps logged since the one before."""
    steps: list[Mapping[str, Any]] = []
    for record in records:
        if not is_evaluation(record):
            steps.append(record)
            continue
        logged = {"loss": sum(s["loss"] for s in steps) / len(steps), "lr": steps[-1]["lr"]} if steps else {}
        yield {**record, **logged}
        steps = []


def evaluation(run: RunFolder) -> Evaluation:
    """The best one, as it was written."""
    return Evaluation.from_json(json.loads((run.val / "metrics.json").read_text()))


def detection_panel(task: DetectionTask, detectors: Mapping[str, Detector], index: int) -> DetectionPanel:
    """Val picture ``index``, what is in it, and what each detector finds."""
    record = task.val.records[index]
    found = {name: detector.predict(record.path, score=0.0)[0].detections for name, detector in detectors.items()}
    return DetectionPanel(load_image(record.path), task.truth(index), found)
