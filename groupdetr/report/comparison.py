"""Comparison of training runs: means over seeds, gains and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from groupdetr.report.chart import Chart, Series
from groupdetr.report.page import Tile

LogRow = Mapping[str, float]  # the numbers of one evaluation of a run, by name
ReadValue = Callable[[LogRow], float]  # returns one number of a row


@dataclass(frozen=True)
class RunSummary:
    """The numbers of one training run. Metrics are in the units of evaluations: AP in [0,1]."""

    groups: int
    seed: int
    epochs: float
    seconds: float  # wall time of training, without evaluation
    peak_memory_mb: float
    metrics: Mapping[str, float]  # of the last evaluation, the main one first
    # Rows of epoch, step, seconds, loss and metrics. Other keys are ignored.
    curve: Sequence[LogRow]
    label: str = ""  # distinguishes the run from others if K does not

    @property
    def name(self) -> str:
        return self.label or f"K = {self.groups}"


@dataclass(frozen=True)
class MeanStd:
    """A mean over seeds and its standard deviation.

    The deviation is nan for a single seed and if a value is not finite.
    """

    mean: float
    std: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> MeanStd:
        if len(values) > 1 and all(math.isfinite(value) for value in values):
            return cls(fmean(values), stdev(values))
        return cls(fmean(values), math.nan)

    def __str__(self) -> str:
        return "" if math.isnan(self.std) else f"± {self.std:.1f}"


@dataclass(frozen=True)
class RunsOverSeeds:
    """All runs with the same name, one for each seed."""

    runs: Sequence[RunSummary]

    @property
    def name(self) -> str:
        return self.runs[0].name

    @property
    def groups(self) -> int:
        return self.runs[0].groups

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def seconds(self) -> float:
        """Mean wall time of training."""
        return fmean(run.seconds for run in self.runs)

    @property
    def memory(self) -> float:
        """Mean peak memory in MB."""
        return fmean(run.peak_memory_mb for run in self.runs)

    def percentages(self, metric: str) -> list[float]:
        """Return a metric of each seed in percent; nan if a run does not have it."""
        return [100 * run.metrics.get(metric, math.nan) for run in self.runs]

    def metric(self, name: str) -> MeanStd:
        """Return the mean of a metric in percent, as papers print AP."""
        return MeanStd.from_values(self.percentages(name))

    def curve(self, read_x: ReadValue, read_y: ReadValue) -> Series:
        """Return the mean curve over seeds, with a band from the lowest seed to the highest."""
        xs: list[float] = []
        ys: list[float] = []
        low: list[float] = []
        high: list[float] = []
        # The n-th evaluations of all seeds are averaged. The curve ends with the shortest run.
        curves_of_seeds = [run.curve for run in self.runs]
        for rows in zip(*curves_of_seeds):
            x_of_seeds = [read_x(row) for row in rows]
            y_of_seeds = [read_y(row) for row in rows]
            xs.append(fmean(x_of_seeds))
            ys.append(fmean(y_of_seeds))
            low.append(min(y_of_seeds))
            high.append(max(y_of_seeds))
        if len(self.runs) == 1:
            return Series(self.name, xs, ys)
        return Series(self.name, xs, ys, low, high)


def collect_seeds(runs: Sequence[RunSummary]) -> list[RunsOverSeeds]:
    """Collect the runs of each name, ordered by seed.

    Names have the order in which they first appear.
    """
    by_name: dict[str, list[RunSummary]] = {run.name: [] for run in runs}
    for run in sorted(runs, key=lambda run: run.seed):
        by_name[run.name].append(run)
    return [RunsOverSeeds(runs_of_name) for runs_of_name in by_name.values()]


def gain(base: RunsOverSeeds, other: RunsOverSeeds, metric: str = "AP") -> MeanStd:
    """Return by how many percentage points ``other`` is better than ``base`` after training.

    If both have the same seeds, the standard deviation is that of the gains of the seeds;
    otherwise it is nan.
    """
    base_values = [100 * run.metrics[metric] for run in base.runs]
    other_values = [100 * run.metrics[metric] for run in other.runs]
    if base.seeds == other.seeds:
        return MeanStd.from_values([b - a for a, b in zip(base_values, other_values)])
    return MeanStd(fmean(other_values) - fmean(base_values), math.nan)


def metric_by_seed(
    configurations: Sequence[RunsOverSeeds], metric: str = "AP"
) -> dict[int, dict[str, float]]:
    """For each seed of the first configuration, return a metric of all of them in percent.

    The inner keys are names of configurations. A configuration without the seed has nan.
    """
    table: dict[int, dict[str, float]] = {seed: {} for seed in configurations[0].seeds}
    for configuration in configurations:
        values = {run.seed: 100 * run.metrics[metric] for run in configuration.runs}
        for seed, row in table.items():
            row[configuration.name] = values.get(seed, math.nan)
    return table


def curves(
    configurations: Sequence[RunsOverSeeds], read_x: ReadValue, read_y: ReadValue
) -> list[Series]:
    """Return one curve for each configuration."""
    return [configuration.curve(read_x, read_y) for configuration in configurations]


def read_epoch(row: LogRow) -> float:
    return row["epoch"]


def read_value(name: str) -> ReadValue:
    """Return a function that reads a number of a row; nan if the row does not have it."""
    return lambda row: row.get(name, math.nan)


def read_percent(name: str) -> ReadValue:
    """Return a function that reads a number of a row in percent."""
    return lambda row: 100 * row.get(name, math.nan)


def instability_chart(configurations: Sequence[RunsOverSeeds]) -> Chart:
    """Return the chart of the paper's Fig. 5."""
    caption = (
        "Number of queries of an image, in the group that is used at inference, that are matched "
        "to another object than at the previous evaluation."
    )
    lines = curves(configurations, read_epoch, read_value("instability"))
    return Chart("Instability of the matching", "epoch", "queries", lines, caption)


def protocol(runs: Sequence[RunSummary]) -> dict[str, object]:
    """Return the numbers of groups, the seeds and the epochs of all runs."""
    groups = sorted({run.groups for run in runs})
    seeds = sorted({run.seed for run in runs})
    epochs = sorted({run.epochs for run in runs})
    return {
        "Groups": ", ".join(str(number) for number in groups),
        "Seeds": ", ".join(str(seed) for seed in seeds),
        "Epochs": ", ".join(f"{number:g}" for number in epochs),
    }


def format_gain(points: float) -> str:
    """Return a difference in percentage points with its sign; a dash if it is not finite."""
    return f"{points:+.1f}".replace("-", "−") if math.isfinite(points) else "–"


def format_std(value: MeanStd) -> str:
    """Return the standard deviation in words; empty if there is none."""
    return f"{value} over the seeds" if str(value) else ""


def format_seconds(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 300 else f"{seconds:.0f} s"


def format_memory(megabytes: float) -> str:
    return f"{megabytes:,.0f} MB"


def cost_tile(
    label: str, before: float, after: float, format_value: Callable[[float], str]
) -> Tile:
    """Return a tile with the ratio of two costs."""
    ratio = f"{after / before:.2f} ×" if before > 0 else "–"
    note = f"{format_value(after)} instead of {format_value(before)}"
    return Tile(label, ratio, note=note)
