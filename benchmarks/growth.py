"""How the cost of a training step grows: with groups, queries, objects, and the size of pictures. Curves on a page.

    python benchmarks/growth.py --page growth.html [--model conditional-detr-r50] [--official ../ConditionalDETR]

Each curve varies one thing and leaves the others; K = 1, K = 11 and K = 11 a group at a time take turns. Memory is what
backward needs at once, parameters not counted. Objects are varied in the criterion alone, on drawn predictions, beside
the form that repositories share, whose memory grows with their square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import criteria
import criterion
import measure
import official
import step
import torch
import tyro

from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.page import facts, page, section

Figures = dict[str, list[float]]  # of every variant, by what is varied


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    official: Path | None = None  # a checkout of their branch, to be drawn too where groups vary
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


@dataclass
class Curve:
    """Seconds and MiB of every variant at every value of ``label``."""

    label: str
    values: Sequence[int]
    seconds: Figures = field(default_factory=dict)
    memory: Figures = field(default_factory=dict)

    def measured(
        self, runs: dict[str, Callable[[], measure.Times]], kept: dict[str, float], rounds: int
    ) -> None:
        """At one more value."""
        times = measure.interleaved(runs, rounds)
        for name in runs:
            self.seconds.setdefault(name, []).append(times.ms(name) / 1000)
            self.memory.setdefault(name, []).append(kept[name])
        print(f"{self.label} {self.values[len(self.memory[name]) - 1]}", flush=True)

    def charts(self) -> list[Chart]:
        units = {"seconds": self.seconds, "MiB kept": self.memory}
        return [
            Chart(
                f"{unit[0].upper()}{unit[1:]} by {self.label}",
                self.label,
                unit,
                self.series(figures),
            )
            for unit, figures in units.items()
        ]

    def series(self, figures: Figures) -> list[Series]:
        return [Series(name, self.values[: len(y)], y) for name, y in figures.items()]


def by_groups(options: Options, curve: Curve) -> None:
    for groups in options.groups:
        steps: dict[str, Any] = {"ours": step.Step(settings(options), groups)}
        steps["in chunks of 1"] = (
            step.ChunkedStep(settings(options), groups, 1) if groups > 1 else steps["ours"]
        )
        if options.official:
            theirs = official.Options(options.official, side=options.side)
            steps["authors'"] = official.variant("theirs", theirs, groups)
        add(curve, steps, options.rounds)


def by(curve: Curve, options: Options, change: Callable[[int], step.Options]) -> None:
    """K = 1, many, and many a group at a time."""
    for value in curve.values:
        changed, most = change(value), options.most
        steps = {"K = 1": step.Step(changed, 1), f"K = {most}": step.Step(changed, most)}
        add(curve, {**steps, f"{most}, by 1": step.ChunkedStep(changed, most, 1)}, options.rounds)


def add(curve: Curve, steps: dict[str, Any], rounds: int) -> None:
    kept = {
        name: measure.kept_for_backward(run, run.model.parameters()) for name, run in steps.items()
    }
    curve.measured(steps, kept, rounds)


def by_objects(curve: Curve, options: Options) -> None:
    compares = {"usual form": criteria.usual, "ours": criteria.ours(compiled=False).compare}
    for count in curve.values:
        case = criterion.Case((count, count), criterion.Options(groups=options.most))
        runs = {
            name: measure.clocked(partial(case.learn, compare))
            for name, compare in compares.items()
        }
        kept = {name: case.kept(compare) for name, compare in compares.items()}
        curve.measured(runs, kept, options.rounds)


def settings(options: Options) -> step.Options:
    return step.Options(options.model, side=options.side)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.zeros(64).atanh()  # as benchmarks/criterion.py
    plain = settings(options)
    groups, objects = Curve("groups", options.groups), Curve("objects of an image", options.objects)
    queries, sides = (
        Curve("queries of a group", options.queries),
        Curve("side, pixels", options.sides),
    )
    by_objects(objects, options)
    by_groups(options, groups)
    by(queries, options, lambda value: replace(plain, queries=value))
    by(sides, options, lambda value: replace(plain, side=value))
    curves = {
        "Groups": groups,
        "Queries": queries,
        "Pictures": sides,
        "Objects, in the criterion": objects,
    }
    rows = {
        f"{name} {v}": row(curve, i)
        for name, curve in curves.items()
        for i, v in enumerate(curve.values)
    }
    measure.show(options, rows, options.out)
    if options.page:
        options.page.write_text(drawn(options, curves))


def row(curve: Curve, place: int) -> dict[str, float]:
    units = {"s": curve.seconds, "MiB": curve.memory}
    return {
        f"{name}, {unit}": y[place]
        for unit, figures in units.items()
        for name, y in figures.items()
    }


def drawn(options: Options, curves: dict[str, Curve]) -> str:
    about = {**measure.environment(), "options": vars(options)}
    lead = f"Process time and memory of a training step of {options.model}, two pictures of {options.side} pixels."
    body = [section(name, charts(curve.charts())) for name, curve in curves.items()]
    return page("Benchmark", "How the cost grows", lead, [*body, section("Machine", facts(about))])


if __name__ == "__main__":
    main(tyro.cli(Options))
