"""The demo: draws a data set, trains with one group and with K on it, and writes the page that compares them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from groupdetr.analysis.matched_queries import matched_queries
from groupdetr.commands.demo_ import Options
from groupdetr.data.formats import load
from groupdetr.data.images import load_image
from groupdetr.data.synthetic import write
from groupdetr.engine.machine import cores, environment
from groupdetr.engine.progress import duration, percent
from groupdetr.engine.run import RunFolder, write_json
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.experiments import DEMO, DEMO_COUNTS, DEMO_DATA, experiment
from groupdetr.predictor import Detector
from groupdetr.report.comparison import RunSummary
from groupdetr.report.demo import DemoResults, write_demo_report
from groupdetr.report.panels import GroupPanel
from groupdetr.reporting import detection_panel, summary
from groupdetr.settings import Settings
from groupdetr.tasks.detection import DetectionTask

PANELS, GROUP_PANELS = 6, 6  # pictures on the page
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Arm:
    """One training of the demo."""

    groups: int
    seed: int
    folder: Path
    epochs: float

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def done(self) -> bool:
        return any(record["epoch"] >= self.epochs for record in self.run.evaluations())


def demo(options: Options) -> dict[str, Any]:
    """Everything; returns what metrics.json holds."""
    started = time.monotonic()
    chosen = experiment(options.model)
    most = options.groups or chosen.groups or 1
    if most < 2:
        raise UsageError("the demo compares one group with several", remedy="--groups 2 or more")
    epochs = options.epochs or DEMO.epochs
    claim(options)
    console.print(f"drawing {sum(DEMO_COUNTS.values())} pictures into {options.out / 'data'}")
    write(DEMO_DATA, options.out / "data", DEMO_COUNTS)
    seeds = range(options.seed, options.seed + options.seeds)
    arms = [Arm(k, seed, options.out / f"k{k}-seed{seed}", epochs) for seed in seeds for k in (most, 1)]
    console.print(f"training {options.model} for {epochs:g} epochs with 1 and with {most} groups of queries")
    train_all(arms, options, options.at_once or min(2, cores()))
    summaries = [summary(arm.run) for arm in arms]
    content = metrics(summaries)
    write_json(options.out / "metrics.json", content)
    report(options, arms, summaries)
    show(summaries, options, time.monotonic() - started)
    return content


def claim(options: Options) -> None:
    """The folder is for this demo: other options than those it was begun with would mix two comparisons."""
    asked = {"model": options.model, "groups": options.groups, "epochs": options.epochs}
    note = options.out / "demo.json"
    if note.is_file() and json.loads(note.read_text()) != asked:
        raise UsageError("this folder holds a demo with other options", str(options.out), "choose another --out")
    write_json(note, asked)


# training


def train_all(arms: Sequence[Arm], options: Options, at_once: int) -> None:
    """Each in a process of its own, which makes its memory measurable, ``at_once`` side by side."""
    waiting, running = [arm for arm in arms if not arm.done], dict[Arm, subprocess.Popen[bytes]]()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {arm: bars.add_task(label(arm), total=arm.epochs, text="") for arm in arms}
        spoken = time.monotonic()
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    arm = waiting.pop(0)
                    running[arm] = start(arm, options)
                time.sleep(0.5)
                for arm in [arm for arm, process in running.items() if process.poll() is not None]:
                    ended(arm, running.pop(arm))
                states = {arm: state(arm) for arm in arms}
                for arm, (epoch, text) in states.items():
                    bars.update(tasks[arm], completed=epoch, text=text)
                if not console.is_terminal and time.monotonic() - spoken > 20:
                    spoken = time.monotonic()
                    console.print("; ".join(f"{label(arm)} {states[arm][1]}" for arm in running))
        finally:
            for process in running.values():
                process.terminate()


def label(arm: Arm) -> str:
    return f"K = {arm.groups}, seed {arm.seed}"


def start(arm: Arm, options: Options) -> subprocess.Popen[bytes]:
    arm.folder.mkdir(parents=True, exist_ok=True)
    chosen = ["--model", options.model, "--groups", str(arm.groups), "--no-check", "--out", str(arm.folder)]
    settings = replace(DEMO, epochs=arm.epochs, seed=arm.seed, threads=1, workers=0, device="cpu")
    new = [str(options.out / "data"), *chosen, *settings.as_flags()]
    arguments = ["--resume", str(arm.folder)] if arm.run.config.is_file() else new
    with (arm.folder / "train.log").open("ab") as log:
        command = [sys.executable, "-m", "groupdetr", "train", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def ended(arm: Arm, process: subprocess.Popen[bytes]) -> None:
    if process.returncode != 0:
        lines = (arm.folder / "train.log").read_text(errors="replace").splitlines()
        raise GroupDETRError(
            f"training with {arm.groups} groups failed: {lines[-1] if lines else process.returncode}",
            str(arm.folder / "train.log"),
            "look at this log; the same command goes on where the training was",
        )


def state(arm: Arm) -> tuple[float, str]:
    """Epoch, and a few words."""
    records = arm.run.records()
    if not records:
        return 0.0, "starting"
    evaluated = [record for record in records if "AP" in record]
    ap = f", AP {percent(evaluated[-1]['AP'])}" if evaluated else ""
    return records[-1]["epoch"], f"epoch {records[-1]['epoch']:.1f}{ap}"


# what came out


def metrics(summaries: Sequence[RunSummary]) -> dict[str, Any]:
    """What metrics.json holds."""
    runs = []
    for run in sorted(summaries, key=lambda run: (run.groups, run.seed)):
        figures = {name: None if math.isnan(value) else value for name, value in run.metrics.items()}
        cost = {"epochs": run.epochs, "seconds": run.seconds, "peak_memory_mb": run.peak_memory_mb}
        runs.append({"groups": run.groups, "seed": run.seed, **figures, **cost})
    return {"runs": runs, "environment": environment()}


def report(options: Options, arms: Sequence[Arm], summaries: Sequence[RunSummary]) -> None:
    """report.html: figures of all seeds, pictures of the first."""
    first = sorted((arm for arm in arms if arm.seed == options.seed), key=lambda arm: arm.groups)
    detectors = {f"K = {arm.groups}": Detector(arm.folder, "cpu") for arm in first}
    data = load(options.out / "data")
    task = DetectionTask(data, Settings(imgsz=next(iter(detectors.values())).imgsz), most=100)
    panels = [detection_panel(task, detectors, index) for index in range(PANELS)]
    best = detectors[f"K = {max(arm.groups for arm in first)}"]
    groups = [group_panel(task, best, index) for index in range(PANELS, PANELS + GROUP_PANELS)]
    machine = environment()
    about = {
        "model": options.model,
        "data": f"{DEMO_COUNTS['train']} training and {DEMO_COUNTS['val']} validation pictures, {DEMO_DATA}",
        "machine": f"{machine['cores']} cores, one thread for each training, {machine['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "command": machine["command"],
    }
    names = [category.name for category in data.categories]
    write_demo_report(options.out / "report.html", DemoResults(summaries, names, panels, groups, about))


def group_panel(task: DetectionTask, detector: Detector, index: int) -> GroupPanel:
    matched = matched_queries(detector.model, detector.recipe.criterion(), task.val, index)
    image = load_image(task.val.records[index].path)
    return GroupPanel(image, matched.boxes, matched.said, matched.points)


def show(summaries: Sequence[RunSummary], options: Options, seconds: float) -> None:
    for run in sorted(summaries, key=lambda run: (run.seed, run.groups)):
        figures = ", ".join(f"{name} {percent(run.metrics[name])}" for name in ("AP", "AP50"))
        cost = f"{duration(run.seconds)} of training, {run.peak_memory_mb:.0f} MB"
        console.print(f"K = {run.groups:<3} seed {run.seed}: {figures}, {cost}")
    console.print(f"{duration(seconds)} in all; open {options.out / 'report.html'}")
