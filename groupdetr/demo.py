"""The demo: draws a data set, trains with one group and with K on it, and writes the page that compares them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from groupdetr.analysis.matched_queries import matched_queries
from groupdetr.commands.demo_ import Options
from groupdetr.data.formats import load
from groupdetr.data.images import load_image
from groupdetr.data.synthetic import write
from groupdetr.engine.machine import cores, environment
from groupdetr.engine.progress import duration, percent
from groupdetr.engine.run import write_json
from groupdetr.errors import UsageError
from groupdetr.experiments import DEMO, DEMO_COUNTS, DEMO_DATA, experiment
from groupdetr.predictor import Detector
from groupdetr.report.comparison import RunSummary
from groupdetr.report.demo import DemoResults, write_demo_report
from groupdetr.report.panels import GroupPanel
from groupdetr.reporting import detection_panel, summary
from groupdetr.settings import Settings
from groupdetr.side_by_side import Arm, Pair, train_all
from groupdetr.tasks.detection import DetectionTask

PANELS, GROUP_PANELS = 6, 6  # pictures on the page
console = Console(highlight=False, soft_wrap=True)


def demo(options: Options) -> dict[str, Any]:
    """Everything; returns what metrics.json holds."""
    started = time.monotonic()
    most = options.groups or experiment(options.model).groups or 1
    if most < 2:
        raise UsageError("the demo compares one group with several", remedy="--groups 2 or more")
    claim(options)
    console.print(f"drawing {sum(DEMO_COUNTS.values())} pictures into {options.out / 'data'}")
    write(DEMO_DATA, options.out / "data", DEMO_COUNTS)
    seeds = range(options.seed, options.seed + options.seeds)
    pairs = [Pair(arm(options, 1, seed), arm(options, most, seed)) for seed in seeds]
    console.print(f"training with 1 and with {most} groups of queries, and with 1 for as long as {most} take")
    longer = train_all(pairs, options.at_once or min(2, cores()), console)
    results = Results(
        [summary(arm.run) for pair in pairs for arm in (pair.base, pair.grouped)],
        [replace(summary(arm.run), longer=True) for arm in longer],
    )
    write_json(options.out / "metrics.json", results.to_json())
    report(options, pairs[0], results)
    results.show()
    console.print(f"{duration(time.monotonic() - started)} in all; open {options.out / 'report.html'}")
    return results.to_json()


def claim(options: Options) -> None:
    """The folder is for this demo: other options than those it was begun with would mix two comparisons."""
    asked = {"model": options.model, "groups": options.groups, "epochs": options.epochs}
    note = options.out / "demo.json"
    if note.is_file() and json.loads(note.read_text()) != asked:
        raise UsageError("this folder holds a demo with other options", str(options.out), "choose another --out")
    write_json(note, asked)


def arm(options: Options, groups: int, seed: int) -> Arm:
    """One training of the demo, on one processor thread."""
    settings = replace(DEMO, epochs=options.epochs or DEMO.epochs, seed=seed, threads=1, workers=0, device="cpu")
    steps = settings.total_steps(DEMO_COUNTS["train"]) or 1
    folder = options.out / f"k{groups}-seed{seed}"
    return Arm(options.model, options.out / "data", folder, groups, settings, steps)


@dataclass(frozen=True)
class Results:
    """``runs``: one group and K, at equal epochs. ``longer``: one group in the time of K, for each seed."""

    runs: list[RunSummary]
    longer: list[RunSummary]

    def to_json(self) -> dict[str, Any]:
        """What metrics.json holds."""
        runs, longer = ([as_row(run) for run in runs] for runs in (self.runs, self.longer))
        return {"runs": runs, "equal_time": longer, "environment": environment()}

    def show(self) -> None:
        for run in sorted([*self.runs, *self.longer], key=lambda run: (run.seed, run.groups, run.longer)):
            figures = ", ".join(f"{name} {percent(run.metrics[name])}" for name in ("AP", "AP50"))
            cost = f"{run.epochs} epochs in {duration(run.seconds)}, {run.peak_memory_mb:.0f} MB"
            console.print(f"K = {run.groups}, seed {run.seed}: {figures}; {cost}")


def as_row(run: RunSummary) -> dict[str, Any]:
    figures = {name: None if math.isnan(value) else value for name, value in run.metrics.items()}
    cost = {"epochs": run.epochs, "seconds": run.seconds, "peak_memory_mb": run.peak_memory_mb}
    return {"groups": run.groups, "seed": run.seed, **figures, **cost}


def report(options: Options, pair: Pair, results: Results) -> None:
    """report.html: figures of all seeds, pictures of the first."""
    detectors = {f"K = {arm.groups}": Detector(arm.folder, "cpu") for arm in (pair.base, pair.grouped)}
    data = load(options.out / "data")
    grouped = detectors[f"K = {pair.grouped.groups}"]
    task = DetectionTask(data, Settings(imgsz=grouped.imgsz), most=grouped.recipe.num_detections)
    panels = [detection_panel(task, detectors, index) for index in range(min(PANELS, len(task.val)))]
    places = range(PANELS, min(PANELS + GROUP_PANELS, len(task.val)))
    groups = [group_panel(task, grouped, index) for index in places]
    machine = environment()
    about = {
        "model": options.model,
        "data": f"{DEMO_COUNTS['train']} training and {DEMO_COUNTS['val']} validation pictures, {DEMO_DATA}",
        "machine": f"{machine['cores']} cores, one thread for each training, {machine['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "command": machine["command"],
    }
    names = [category.name for category in data.categories]
    page = DemoResults(results.runs, names, panels, groups, results.longer, about)
    write_demo_report(options.out / "report.html", page)


def group_panel(task: DetectionTask, detector: Detector, index: int) -> GroupPanel:
    matched = matched_queries(detector.model, detector.recipe.criterion(), task.val, index)
    image = load_image(task.val.records[index].path)
    return GroupPanel(image, matched.boxes, matched.said, matched.points)
