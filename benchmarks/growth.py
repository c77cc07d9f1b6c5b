"""How costs grow with groups, queries, objects, classes, the size of images and of datasets.

    python benchmarks/growth.py --page growth.html [--official ../ConditionalDETR]
    python benchmarks/growth.py --curves classes dataset

It draws curves on a page. Each curve varies one number and leaves the others.

- groups, queries, sides: a training step. K = 1, K = 11 and K = 11 one group at a time take turns.
  Memory is what the backward pass needs at once, without parameters.
- objects, classes: the criterion alone, on random predictions, in comparison with the form that
  repositories share, whose memory grows with the square of the number of objects. Memory is what
  the backward pass needs; with classes it is what tensors take at most, gradients included,
  because a criterion may need more while it computes than it keeps.
- dataset: reading the annotations of as many images as `loading.py` draws, by pycocotools, by this
  library, and by this library from its cache. Memory is what reading adds to a process for good.

The growth with the number of processes is measured by `ranks.py`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import criteria
import criterion
import measure
import official
import step
import torch

from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.page import facts, page, section

# Name of a variant -> one figure for each value of the number that is varied
Figures = dict[str, list[float]]
AnyStep = step.Step | official.LossStep
CurveName = Literal["groups", "queries", "sides", "objects", "classes", "dataset"]
CRITERION_COUNTS = (7, 7)  # objects of the two images where classes are varied
LOADING = Path(__file__).with_name("loading.py")


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    curves: tuple[CurveName, ...] = get_args(CurveName)
    official: Path | None = None  # a checkout of the authors' branch, for the curve over groups
    most: int = 11  # K
    groups: tuple[int, ...] = (1, 3, 5, 11, 13)
    queries: tuple[int, ...] = (100, 300, 600, 900)
    sides: tuple[int, ...] = (256, 384, 512, 640, 800)
    objects: tuple[int, ...] = (1, 10, 50, 100, 200, 300)
    classes: tuple[int, ...] = (20, 91, 365, 1203)  # VOC, COCO, Objects365, LVIS
    images: tuple[int, ...] = (1000, 5000, 20000, 118287)  # of a dataset
    side: int = 320
    rounds: int = 3
    device: str = "cpu"
    threads: int = 1
    quick: bool = False  # a small detector, fewer values and rounds
    page: Path | None = None
    out: Path | None = None  # JSON

    @property
    def step_options(self) -> step.Options:
        return step.Options(self.model, side=self.side, device=self.device)


QUICK = {
    "model": "conditional-detr-tiny",
    "most": 6,
    "groups": (1, 3, 6),
    "queries": (20, 60),
    "sides": (64, 128),
    "objects": (1, 30, 60),
    "classes": (91, 365),
    "images": (1000, 5000),
    "side": 96,
    "rounds": 1,
}


@dataclass
class Curve:
    """Seconds and MiB of every variant, at every value of what ``label`` names."""

    label: str
    values: Sequence[int]
    memory_label: str = "MiB kept"
    seconds: Figures = field(default_factory=dict)
    memory: Figures = field(default_factory=dict)

    def measure_next(
        self,
        runs: Mapping[str, measure.TimedRun],
        memory: Mapping[str, float],
        rounds: int,
    ) -> None:
        """Measure the times at the next value. ``memory`` has the MiB of each run."""
        timings = measure.time_interleaved(runs, rounds)
        self.add({name: timings.ms(name) / 1000 for name in runs}, memory)

    def add(self, seconds: Mapping[str, float], memory: Mapping[str, float]) -> None:
        """Add the figures at the next value, by variant."""
        for name in seconds:
            self.seconds.setdefault(name, []).append(seconds[name])
            self.memory.setdefault(name, []).append(memory[name])
        num_measured = len(next(iter(self.memory.values())))
        print(f"{self.label} {self.values[num_measured - 1]}", flush=True)

    def measure_steps(self, steps: Mapping[str, AnyStep], rounds: int) -> None:
        """Add the figures of training steps at the next value."""
        memory = {}
        for name, run in steps.items():
            memory[name] = measure.saved_for_backward(run, run.model.parameters())
        self.measure_next(steps, memory, rounds)

    def charts(self) -> list[Chart]:
        seconds = self.chart("Seconds", "seconds", self.seconds)
        memory = self.chart(self.memory_label, self.memory_label, self.memory)
        return [seconds, memory]

    def chart(self, title: str, unit: str, figures: Figures) -> Chart:
        series = []
        for name, values in figures.items():
            series.append(Series(name, self.values[: len(values)], values))
        return Chart(f"{title} by {self.label}", self.label, unit, series)

    def row(self, position: int) -> dict[str, float]:
        """Return all figures at one of the values, by name and unit."""
        row = {}
        for unit, figures in (("s", self.seconds), ("MiB", self.memory)):
            for name, values in figures.items():
                row[f"{name}, {unit}"] = values[position]
        return row


def vary_groups(curve: Curve, options: Options) -> None:
    step_options = options.step_options
    for groups in curve.values:
        steps: dict[str, AnyStep] = {"ours": step.Step(step_options, groups)}
        if groups > 1:
            steps["in chunks of 1"] = step.ChunkedStep(step_options, groups, 1)
        else:
            steps["in chunks of 1"] = steps["ours"]
        if options.official:
            official_options = official.Options(
                options.official, side=options.side, device=options.device
            )
            steps["authors'"] = official.loss_step("theirs", official_options, groups)
        curve.measure_steps(steps, options.rounds)


def vary_step(curve: Curve, options: Options, options_for: Callable[[int], step.Options]) -> None:
    """Measure K = 1, all K groups at once, and all K groups one at a time.

    ``options_for`` returns the options of the step for one value of the curve.
    """
    groups = options.most
    for value in curve.values:
        step_options = options_for(value)
        steps = {
            "K = 1": step.Step(step_options, 1),
            f"K = {groups}": step.Step(step_options, groups),
            f"{groups}, by 1": step.ChunkedStep(step_options, groups, 1),
        }
        curve.measure_steps(steps, options.rounds)


def vary_objects(curve: Curve, options: Options) -> None:
    """Measure matching, losses and backward of two criteria on random predictions."""
    criterion_options = criterion.Options(groups=options.most, device=options.device)
    for count in curve.values:
        predictions = criterion.RandomPredictions((count, count), criterion_options)
        runs, memory = {}, {}
        for name, loss_function in compared_losses().items():
            run = partial(predictions.backward, loss_function)
            runs[name] = measure.timed(run, options.device)
            memory[name] = predictions.saved_mib(loss_function)
        curve.measure_next(runs, memory, options.rounds)


def vary_classes(curve: Curve, options: Options) -> None:
    """Measure matching, losses and backward of two criteria, and the peak of their memory."""
    criterion.warm_up_log1p()
    for classes in curve.values:
        predictions = criterion.RandomPredictions(
            CRITERION_COUNTS,
            criterion.Options(groups=options.most, classes=classes, device=options.device),
        )
        runs, memory = {}, {}
        for name, loss_function in compared_losses().items():
            run = partial(predictions.backward, loss_function)
            runs[name] = measure.timed(run, options.device)
            memory[name] = measure.peak_of_tensors(run, options.device) / measure.MIB
        curve.measure_next(runs, memory, options.rounds)


def compared_losses() -> dict[str, criteria.LossFunction]:
    return {"usual form": criteria.usual_loss, "ours": criteria.ours(compiled=False).loss}


def vary_dataset(curve: Curve, options: Options) -> None:
    """Measure the process time and the memory of reading annotations, each in a new process."""
    ways = ["groupdetr", "from the cache"]
    if find_spec("pycocotools"):
        ways.insert(0, "pycocotools")
    for images in curve.values:
        with TemporaryDirectory() as folder:
            file = Path(folder, "coco.json")
            run_loading("draw", str(file), "--images", str(images))
            variables = {"HF_HOME": folder}  # the cache is written below it
            run_loading("read", str(file), "--by", "from the cache", **variables)  # writes it
            seconds, memory = {}, {}
            for way in ways:
                results = []
                for _ in range(options.rounds):
                    text = run_loading("read", str(file), "--by", way, **variables)
                    results.append(json.loads(text.splitlines()[-1]))
                seconds[way] = statistics.median(result["CPU"] for result in results)
                memory[way] = statistics.median(result["kept"] for result in results) / 2**20
        curve.add(seconds, memory)


def run_loading(*arguments: str, **variables: str) -> str:
    """Run `loading.py` with environment variables, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(LOADING.parents[1]), **variables}
    run = subprocess.run(
        [sys.executable, str(LOADING), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    criterion.warm_up_log1p()
    plain = options.step_options
    curves: dict[str, Curve] = {}
    if "objects" in options.curves:
        curves["Objects, in the criterion"] = curve = Curve("objects of an image", options.objects)
        vary_objects(curve, options)
    if "classes" in options.curves:
        curves["Classes, in the criterion"] = curve = Curve("classes", options.classes, "MiB, peak")
        vary_classes(curve, options)
    if "groups" in options.curves:
        curves["Groups"] = curve = Curve("groups", options.groups)
        vary_groups(curve, options)
    if "queries" in options.curves:
        curves["Queries"] = curve = Curve("queries of a group", options.queries)
        vary_step(curve, options, lambda value: replace(plain, queries=value))
    if "sides" in options.curves:
        curves["Images"] = curve = Curve("side, pixels", options.sides)
        vary_step(curve, options, lambda value: replace(plain, side=value))
    if "dataset" in options.curves:
        label = "images of the dataset"
        curves["Dataset, reading its annotations"] = curve = Curve(label, options.images)
        vary_dataset(curve, options)

    rows = {}
    for name, curve in curves.items():
        for position, value in enumerate(curve.values):
            rows[f"{name} {value:,}"] = curve.row(position)
    measure.show(options, rows, options.out)
    if options.page:
        options.page.write_text(render_page(options, curves), encoding="utf-8")


def render_page(options: Options, curves: Mapping[str, Curve]) -> str:
    """Return the page as HTML: two charts for each curve."""
    machine = {**measure.machine(), "options": measure.public(vars(options))}
    lead = (
        f"Process time and memory of a training step of {options.model}, "
        f"two images of {options.side} pixels."
    )
    body = [section(name, charts(curve.charts())) for name, curve in curves.items()]
    body.append(section("Machine", facts(machine)))
    return page("Benchmark", "How the cost grows", lead, body)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
