"""What several training runs say together: means over seeds, gains and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from groupdetr.report.chart import Chart, Series
from groupdetr.report.page import Tile

Reading = Callable[[Mapping[str, float]], float]  # a number of one row of a curve


@dataclass(frozen=True)
class RunSummary:
    """One training run in plain numbers. Figures are as evaluations say them, AP in [0,1], here as in ``curve``."""

    groups: int
    seed: int
    epochs: float
    seconds: float  # wall time of training, evaluation not counted
    peak_memory_mb: float
    metrics: Mapping[str, float]  # the figures of an evaluation, at the end, the deciding one first
    curve: Sequence[
        Mapping[str, float]
    ]  # rows of epoch, step, seconds, loss, and figures; more keys do not hurt
    label: str = ""  # what tells it from the others, if K does not

    @property
    def name(self) -> str:
        return self.label or f"K = {self.groups}"


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
    """All runs of one name, one for each seed."""

    runs: Sequence[RunSummary]

    @property
    def name(self) -> str:
        return self.runs[0].name

    @property
    def groups(self) -> int:
        return self.runs[0].groups

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
    """In the order in which their names first come; seeds in order."""
    in_order = sorted(runs, key=lambda run: run.seed)
    names = dict.fromkeys(run.name for run in runs)
    return [Arm([run for run in in_order if run.name == name]) for name in names]


def gain(base: Arm, other: Arm, score: str = "AP") -> Spread:
    """By how many points ``other`` leads at the end; seed by seed where both have the same seeds."""
    lower, upper = ([100 * run.metrics[score] for run in arm.runs] for arm in (base, other))
    return _difference(base, other, lower, upper)


def _difference(base: Arm, other: Arm, lower: Sequence[float], upper: Sequence[float]) -> Spread:
    if [run.seed for run in base.runs] == [run.seed for run in other.runs]:
        return Spread.of([b - a for a, b in zip(lower, upper)])
    return Spread(fmean(upper) - fmean(lower), math.nan)


def by_seed(all_arms: Sequence[Arm], score: str = "AP") -> dict[int, dict[str, float]]:
    """For each seed of the first arm, what every arm reached, by its name."""
    of_arms = {
        arm.name: {run.seed: 100 * run.metrics[score] for run in arm.runs} for arm in all_arms
    }
    seeds = [run.seed for run in all_arms[0].runs]
    return {
        seed: {name: reached.get(seed, math.nan) for name, reached in of_arms.items()}
        for seed in seeds
    }


def curves(all_arms: Sequence[Arm], x: Reading, y: Reading) -> list[Series]:
    return [arm.curve(x, y) for arm in all_arms]


def epoch(row: Mapping[str, float]) -> float:
    return row["epoch"]


def value(name: str) -> Reading:
    return lambda row: row.get(name, math.nan)


def percent(name: str) -> Reading:
    return lambda row: 100 * row.get(name, math.nan)


def instability(all_arms: Sequence[Arm]) -> Chart:
    """The paper's Fig. 5."""
    words = "Queries of a picture, in the group that answers, with another object than at the evaluation before."
    lines = curves(all_arms, epoch, value("instability"))
    return Chart("Instability of the matching", "epoch", "queries", lines, words)


def protocol(runs: Sequence[RunSummary]) -> dict[str, object]:
    """What was the same for all, and what was not."""
    return {
        "Groups": ", ".join(str(groups) for groups in sorted({run.groups for run in runs})),
        "Seeds": ", ".join(str(seed) for seed in sorted({run.seed for run in runs})),
        "Epochs": ", ".join(f"{epochs:g}" for epochs in sorted({run.epochs for run in runs})),
    }


def signed(points: float) -> str:
    """A gain or a loss of AP."""
    return f"{points:+.1f}".replace("-", "−") if math.isfinite(points) else "–"


def over_seeds(ap: Spread) -> str:
    return f"{ap} over the seeds" if str(ap) else ""


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 300 else f"{seconds:.0f} s"


def price(label: str, before: float, after: float, words: Callable[[float], str]) -> Tile:
    """What it costs, as a multiple."""
    ratio = f"{after / before:.2f} ×" if before > 0 else "–"
    return Tile(label, ratio, note=f"{words(after)} instead of {words(before)}")
