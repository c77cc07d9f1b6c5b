"""How the cost of a training step grows with groups, queries, objects, and the size of images.

    python benchmarks/growth.py --page growth.html [--official ../ConditionalDETR]

It draws curves on a page. Each curve varies one number and leaves the others; K = 1, K = 11 and
K = 11 one group at a time take turns. Memory is what the backward pass needs at once, without
parameters. The number of objects is varied in the criterion alone, on random predictions, in
comparison with the form that repositories share, whose memory grows with the square of that number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import criteria
import criterion
import measure
import official
import step
import torch
import tyro

from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.page import facts, page, section

# Name of a variant -> one figure for each value of the number that is varied
Figures = dict[str, list[float]]
AnyStep = step.Step | official.LossStep


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    official: Path | None = None  # a checkout of the authors' branch, for the curve over groups
    most: int = 11  # K
    groups: tuple[int, ...] = (1, 3, 5, 11, 13)
    queries: tuple[int, ...] = (100, 300, 600, 900)
    sides: tuple[int, ...] = (256, 384, 512, 640, 800)
    objects: tuple[int, ...] = (1, 10, 50, 100, 200, 300)
    side: int = 320
    rounds: int = 3
    threads: int = 1
    page: Path | None = None
    out: Path | None = None  # JSON

    @property
    def step_options(self) -> step.Options:
        return step.Options(self.model, side=self.side)


@dataclass
class Curve:
    """Seconds and saved MiB of every variant, at every value of what ``label`` names."""

    label: str
    values: Sequence[int]
    seconds: Figures = field(default_factory=dict)
    memory: Figures = field(default_factory=dict)

    def measure_next(
        self,
        runs: Mapping[str, measure.TimedRun],
        memory: Mapping[str, float],
        rounds: int,
    ) -> None:
        """Add the figures at the next value. ``memory`` has the saved MiB of each run."""
        timings = measure.time_interleaved(runs, rounds)
        for name in runs:
            self.seconds.setdefault(name, []).append(timings.ms(name) / 1000)
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
        memory = self.chart("MiB kept", "MiB kept", self.memory)
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
            official_options = official.Options(options.official, side=options.side)
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
    loss_functions = {
        "usual form": criteria.usual_loss,
        "ours": criteria.ours(compiled=False).loss,
    }
    criterion_options = criterion.Options(groups=options.most)
    for count in curve.values:
        predictions = criterion.RandomPredictions((count, count), criterion_options)
        runs, memory = {}, {}
        for name, loss_function in loss_functions.items():
            runs[name] = measure.timed(partial(predictions.backward, loss_function))
            memory[name] = predictions.saved_mib(loss_function)
        curve.measure_next(runs, memory, options.rounds)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    criterion.warm_up_log1p()
    groups = Curve("groups", options.groups)
    queries = Curve("queries of a group", options.queries)
    sides = Curve("side, pixels", options.sides)
    objects = Curve("objects of an image", options.objects)

    plain = options.step_options
    vary_objects(objects, options)
    vary_groups(groups, options)
    vary_step(queries, options, lambda value: replace(plain, queries=value))
    vary_step(sides, options, lambda value: replace(plain, side=value))

    curves = {
        "Groups": groups,
        "Queries": queries,
        "Images": sides,
        "Objects, in the criterion": objects,
    }
    rows = {}
    for name, curve in curves.items():
        for position, value in enumerate(curve.values):
            rows[f"{name} {value}"] = curve.row(position)
    measure.show(options, rows, options.out)
    if options.page:
        options.page.write_text(render_page(options, curves))


def render_page(options: Options, curves: Mapping[str, Curve]) -> str:
    """Return the page as HTML: two charts for each curve."""
    machine = {**measure.environment(), "options": vars(options)}
    lead = (
        f"Process time and memory of a training step of {options.model}, "
        f"two images of {options.side} pixels."
    )
    body = [section(name, charts(curve.charts())) for name, curve in curves.items()]
    body.append(section("Machine", facts(machine)))
    return page("Benchmark", "How the cost grows", lead, body)


if __name__ == "__main__":
    main(tyro.cli(Options))
