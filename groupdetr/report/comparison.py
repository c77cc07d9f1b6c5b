"""What several training runs say together: means over seeds, gains and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from groupdetr.report.chart import Series

Reading = Callable[[Mapping[str, float]], float]  # a number of one row of a curve


@dataclass(frozen=True)
class RunSummary:
    """One training run in plain numbers. AP and its kin are in [0,1], here as in ``curve``."""

    groups: int
    seed: int
    epochs: int
    seconds: float  # wall time of training, evaluation not counted
    peak_memory_mb: float
    metrics: Mapping[str, float]  # the figures of evaluation.coco, at the end
    curve: Sequence[Mapping[str, float]]  # rows of epoch, step, seconds, AP, AP50, loss; more keys do not hurt
    longer: bool = False  # trained for more epochs than the others, to take the same time

    @property
    def name(self) -> str:
        return f"K = {self.groups}, longer" if self.longer else f"K = {self.groups}"


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and its standard deviation, nan for a single seed and for figures that are undefined."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        defined = len(values) > 1 and all(map(math.isfinite, values))
        return cls(fmean(values), stdev(values) if defined else math.nan)

    def __str__(self) -> str:
        return "" if math.isnan(self.deviation) else f"± {self.deviation:.1f}"


@dataclass(frozen=True)
class Arm:
    """All runs with one number of groups, one for each seed."""

    groups: int
    runs: Sequence[RunSummary]

    @property
    def name(self) -> str:
        return self.runs[0].name

    @property
    def seconds(self) -> float:
        return fmean(run.seconds for run in self.runs)

    @property
    def memory(self) -> float:
        """MB at the peak."""
        return fmean(run.peak_memory_mb for run in self.runs)

    def metric(self, name: str) -> Spread:
        """In points of a hundred, as papers print AP."""
        return Spread.of([100 * run.metrics.get(name, math.nan) for run in self.runs])

    def curve(self, x: Reading, y: Reading) -> Series:
        """The mean over seeds, point by point, between the lowest and the highest of them."""
        points = list(zip(*(run.curve for run in self.runs)))
        ys = [[y(row) for row in rows] for rows in points]
        xs = [fmean(map(x, rows)) for rows in points]
        band = (list(map(min, ys)), list(map(max, ys))) if len(self.runs) > 1 else ()
        return Series(self.name, xs, list(map(fmean, ys)), *band)


def arms(runs: Sequence[RunSummary]) -> list[Arm]:
    """By rising number of groups; seeds in order."""
    ordered = sorted(runs, key=lambda run: (run.groups, run.seed))
    numbers = dict.fromkeys(run.groups for run in ordered)
    return [Arm(groups, [run for run in ordered if run.groups == groups]) for groups in numbers]


def gain(base: Arm, other: Arm) -> Spread:
    """By how many points of AP ``other`` leads at the end; seed by seed where both have the same seeds."""
    lower, upper = ([100 * run.metrics["AP"] for run in arm.runs] for arm in (base, other))
    return _difference(base, other, lower, upper)


def _difference(base: Arm, other: Arm, lower: Sequence[float], upper: Sequence[float]) -> Spread:
    if [run.seed for run in base.runs] == [run.seed for run in other.runs]:
        return Spread.of([b - a for a, b in zip(lower, upper)])
    return Spread(fmean(upper) - fmean(lower), math.nan)
