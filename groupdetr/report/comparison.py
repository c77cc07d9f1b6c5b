"""Comparison of trainings: configurations over seeds, gains with their intervals, and curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import fmean, stdev

from groupdetr.report.chart import Series
from groupdetr.structures.json_object import JsonObject

LogRow = Mapping[str, float]  # the numbers of one evaluation of a run, by name
ReadValue = Callable[[LogRow], float]  # returns one number of a row
# What a curve in a file keeps of every evaluation, besides the metrics.
CURVE_KEYS = ("epoch", "step", "seconds", "cpu_seconds", "loss", "instability")
CONFIDENCE = 0.95  # of the intervals of gains


@dataclass(frozen=True)
class RunSummary:
    """The numbers of one training run. Metrics are in the units of evaluations: AP in [0,1]."""

    groups: int
    seed: int
    epochs: float
    seconds: float  # wall time of training, without evaluation
    peak_memory_mb: float
    metrics: Mapping[str, float]  # of the last evaluation, the main one first
    # Rows of epoch, step, seconds, cpu_seconds, loss and metrics. Other keys are ignored.
    curve: Sequence[LogRow]
    cpu_seconds: float = math.nan  # CPU time of training; nan if it was not recorded
    steps: int = 0
    name: str = ""  # of the folder

    def to_json(self) -> JsonObject:
        """Return the numbers for a file. A number that is not defined is None."""
        curve = []
        for row in self.curve:
            names = (*CURVE_KEYS, *self.metrics)
            curve.append({name: _rounded(row[name]) for name in names if name in row})
        return {
            "training": self.name,
            "seed": self.seed,
            "groups": self.groups,
            "epochs": self.epochs,
            "steps": self.steps,
            "seconds": _rounded(self.seconds),
            "cpu_seconds": _rounded(self.cpu_seconds),
            "peak_memory_mb": _rounded(self.peak_memory_mb),
            "metrics": {name: _rounded(value) for name, value in self.metrics.items()},
            "curve": curve,
        }

    @classmethod
    def from_json(cls, content: JsonObject) -> RunSummary:
        """Return the summary that `to_json` returned."""
        return cls(
            groups=content["groups"],
            seed=content["seed"],
            epochs=content["epochs"],
            steps=content["steps"],
            seconds=_number(content["seconds"]),
            cpu_seconds=_number(content["cpu_seconds"]),
            peak_memory_mb=_number(content["peak_memory_mb"]),
            metrics={name: _number(value) for name, value in content["metrics"].items()},
            curve=[
                {name: _number(value) for name, value in row.items()} for row in content["curve"]
            ],
            name=content["training"],
        )


def _rounded(value: float) -> float | None:
    """Return a number with the digits that a file needs; None if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value


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
class Gain:
    """A difference between two configurations, in percentage points.

    ``low`` and ``high`` are the ends of the 95 % interval of the mean by Student's t distribution
    over the differences of the seeds. They are nan unless both have the same two or more seeds.
    ``seeds`` is the number of seeds that both have; with none, it is the difference of two means.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    seeds: int = 1

    @classmethod
    def from_differences(cls, values: Sequence[float]) -> Gain:
        """Return the mean of the differences of the seeds, and its interval."""
        mean = fmean(values)
        if len(values) < 2 or not all(math.isfinite(value) for value in values):
            return cls(mean, seeds=len(values))
        # Imported here: it takes a second, and most pages do not need it.
        from scipy.stats import t

        quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        margin = quantile * stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - margin, mean + margin, len(values))

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low)

    @property
    def is_clear(self) -> bool:
        """True if the interval is on one side of zero."""
        return self.has_interval and (self.low > 0 or self.high < 0)

    @property
    def interval(self) -> str:
        """The interval in words; empty if there is none."""
        if not self.has_interval:
            return ""
        return f"{format_gain(self.low)} to {format_gain(self.high)}"

    @property
    def reason(self) -> str:
        """Why there is no interval, in words: there are too few seeds; else empty."""
        return {0: "no seed in common", 1: "one seed"}.get(self.seeds, "")

    def __str__(self) -> str:
        text = format_gain(self.mean)
        return f"{text} ({self.interval})" if self.has_interval else text


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in their seed, in the order of the seeds."""

    key: str  # unique among those of a page
    label: str  # its name for readers
    runs: Sequence[RunSummary]
    baseline: bool = False  # drawn dashed; others are drawn bold
    family: str = ""  # configurations of one family have one colour
    reported: float | None = None  # the paper's figure in percent
    details: Mapping[str, object] = field(default_factory=dict)  # model, N, data: for tables

    @property
    def groups(self) -> int:
        return self.runs[0].groups

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def epochs(self) -> float:
        """The number of epochs of the longest run."""
        return max(run.epochs for run in self.runs)

    @property
    def seconds(self) -> float:
        """Mean wall time of training."""
        return fmean(run.seconds for run in self.runs)

    @property
    def cpu_seconds(self) -> float:
        """Mean CPU time of training; nan if a run did not record it."""
        return fmean(run.cpu_seconds for run in self.runs)

    @property
    def memory(self) -> float:
        """Mean peak memory in MiB."""
        return fmean(run.peak_memory_mb for run in self.runs)

    def step_seconds(self, key: str) -> float:
        """Return the mean time of a step; ``key`` is "cpu_seconds" or "seconds"."""
        values = []
        for run in self.runs:
            steps = run.steps or (run.curve[-1].get("step", 0) if run.curve else 0)
            values.append(getattr(run, key) / steps if steps else math.nan)
        return fmean(values)

    def percentages(self, metric: str) -> list[float]:
        """Return a metric of each seed in percent; nan if a run does not have it."""
        return [100 * run.metrics.get(metric, math.nan) for run in self.runs]

    def metric(self, name: str) -> MeanStd:
        """Return the mean of a metric in percent, as papers print AP."""
        return MeanStd.from_values(self.percentages(name))

    def curve(self, read_x: ReadValue, read_y: ReadValue, colour: int | None = None) -> Series:
        """Return the mean curve over seeds, with a band from the lowest seed to the highest."""
        xs: list[float] = []
        ys: list[float] = []
        low: list[float] = []
        high: list[float] = []
        # The n-th evaluations of all seeds are averaged. The curve ends with the shortest run.
        for rows in zip(*(run.curve for run in self.runs)):
            x_of_seeds = [read_x(row) for row in rows]
            y_of_seeds = [read_y(row) for row in rows]
            xs.append(fmean(x_of_seeds))
            ys.append(fmean(y_of_seeds))
            low.append(min(y_of_seeds))
            high.append(max(y_of_seeds))
        if len(self.runs) == 1:
            low, high = [], []
        style = {"dashed": self.baseline, "bold": not self.baseline}
        return Series(self.label, xs, ys, low, high, colour=colour, **style)

    def to_json(self) -> JsonObject:
        """Return the configuration and its runs for a file."""
        content = asdict(self)
        content["details"] = {name: str(value) for name, value in self.details.items()}
        content["runs"] = [run.to_json() for run in self.runs]
        return content

    @classmethod
    def from_json(cls, content: JsonObject) -> Configuration:
        """Return the configuration that `to_json` returned."""
        runs = [RunSummary.from_json(run) for run in content["runs"]]
        return cls(**{**content, "runs": runs})


def gain(base: Configuration, other: Configuration, metric: str) -> Gain:
    """Return by how many percentage points ``other`` is better than ``base`` after training.

    Only seeds that both have are compared, if there are any.
    """
    base_values = dict(zip(base.seeds, base.percentages(metric)))
    other_values = dict(zip(other.seeds, other.percentages(metric)))
    common = [seed for seed in base_values if seed in other_values]
    if common:
        return Gain.from_differences([other_values[seed] - base_values[seed] for seed in common])
    return Gain(other.metric(metric).mean - base.metric(metric).mean, seeds=0)


def gain_at_equal_time(
    base: Configuration, other: Configuration, metric: str, key: str
) -> tuple[Gain, float]:
    """Return the gain at the same time of training, read from the curves, and that time.

    The time is when the shorter of the two trainings ends. ``key`` is "cpu_seconds" or "seconds".
    """
    end = min(getattr(base, key), getattr(other, key))
    base_values = {run.seed: value_at(run.curve, key, end, metric) for run in base.runs}
    other_values = {run.seed: value_at(run.curve, key, end, metric) for run in other.runs}
    common = [seed for seed in base_values if seed in other_values]
    if common:
        differences = [100 * (other_values[seed] - base_values[seed]) for seed in common]
        return Gain.from_differences(differences), end
    mean = 100 * (fmean(other_values.values()) - fmean(base_values.values()))
    return Gain(mean, seeds=0), end


def value_at(curve: Sequence[LogRow], key: str, position: float, metric: str) -> float:
    """Return a metric at a position of a curve, linear between evaluations.

    It is nan before the first evaluation, and the last value after the end.
    """
    points = [(row.get(key, math.nan), row.get(metric, math.nan)) for row in curve]
    points = [point for point in points if all(map(math.isfinite, point))]
    if not points or position < points[0][0]:
        return math.nan
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= position <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (position - x0) / (x1 - x0)
    return points[-1][1]


def time_key(configurations: Iterable[Configuration]) -> str:
    """Return the time in which trainings are compared: "cpu_seconds" if all have it."""
    runs = [run for configuration in configurations for run in configuration.runs]
    return "cpu_seconds" if all(run.cpu_seconds > 0 for run in runs) else "seconds"


def family_colours(configurations: Sequence[Configuration]) -> list[int]:
    """Return the index of a colour for each configuration: one for each family.

    If all belong to one family, or to none, each has its own colour.
    """
    families = list(dict.fromkeys(item.family or item.key for item in configurations))
    if len(families) < 2:
        return list(range(len(configurations)))
    return [families.index(item.family or item.key) for item in configurations]


def curves(
    configurations: Sequence[Configuration], read_x: ReadValue, read_y: ReadValue
) -> list[Series]:
    """Return one curve for each configuration, in the colour of its family."""
    colours = family_colours(configurations)
    return [item.curve(read_x, read_y, colour) for item, colour in zip(configurations, colours)]


def read_epoch(row: LogRow) -> float:
    return row["epoch"]


def read_value(name: str, factor: float = 1.0) -> ReadValue:
    """Return a function that reads a number of a row; nan if the row does not have it."""
    return lambda row: factor * row.get(name, math.nan)


def read_percent(name: str) -> ReadValue:
    """Return a function that reads a number of a row in percent."""
    return read_value(name, 100.0)


def format_gain(points: float) -> str:
    """Return a difference in percentage points with its sign; a dash if it is not finite."""
    if not math.isfinite(points):
        return "–"
    text = f"{points:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def format_value(value: float, digits: int = 1) -> str:
    """Return a number with ``digits`` decimals; a dash if it is not finite."""
    return f"{value:,.{digits}f}" if math.isfinite(value) else "–"


def ratio(value: float, base: float) -> float:
    """Return ``value`` over ``base``; nan if ``base`` is zero because it could not be measured."""
    return value / base if base else math.nan


def format_seconds(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 300 else f"{seconds:.0f} s"
