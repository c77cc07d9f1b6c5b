"""The parts of a page that compares trainings: tiles, dots, tables and curves.

Every item of `groupdetr paper`, the demo and `groupdetr compare` are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from groupdetr.report.chart import Chart, charts
from groupdetr.report.comparison import (
    CONFIDENCE,
    Configuration,
    Gain,
    curves,
    family_colours,
    format_gain,
    format_seconds,
    format_value,
    gain,
    gain_at_equal_time,
    ratio,
    read_epoch,
    read_percent,
    read_value,
    time_key,
)
from groupdetr.report.dots import DotRow, dot_chart
from groupdetr.report.page import Cell, Column, Html, Tile, prose, section, table, tiles

MAX_SENTENCES = 4  # gains that are told one by one; more are summarised
MAX_COLUMNS = 6  # configurations that are columns of the table of seeds; more are rows
MAX_FAMILIES = 2  # in one chart; more have charts of their own
TIME_NAMES = {"cpu_seconds": "CPU time", "seconds": "wall time"}


@dataclass(frozen=True)
class GainRow:
    """A difference that a page is about: one configuration over another, and the paper's figure."""

    label: str
    over: str  # the key of the configuration that it is compared with
    of: str  # the key of the better one, as the paper claims
    reported: float | None = None  # percentage points in the paper

    def measured(self, by_key: Mapping[str, Configuration], metric: str) -> Gain:
        return gain(by_key[self.over], by_key[self.of], metric)


@dataclass(frozen=True)
class ComparisonPage:
    """The numbers of a page that compares trainings, and how they are shown."""

    configurations: Sequence[Configuration]
    gains: Sequence[GainRow]
    metric: str  # the main one, such as "AP" or "NDS"
    metrics: Sequence[str]  # of the table, in percent
    source: str = ""  # where the paper's figures are from
    errors: Sequence[str] = field(default=())  # further metrics of which lower is better

    @property
    def by_key(self) -> dict[str, Configuration]:
        return {item.key: item for item in self.configurations}

    @property
    def num_seeds(self) -> int:
        return max(len(item.runs) for item in self.configurations)

    @property
    def time_key(self) -> str:
        return time_key(self.configurations)

    @property
    def time_name(self) -> str:
        return TIME_NAMES[self.time_key]

    def step_ratio(self, item: Configuration) -> float:
        """Return the time of a step over that of the fewest groups of the same family."""
        family = [other for other in self.configurations if other.family == item.family]
        base = min(family, key=lambda other: other.groups)
        return ratio(item.step_seconds(self.time_key), base.step_seconds(self.time_key))


def headline(page: ComparisonPage, most: int = 8) -> Html:
    """Return one tile for each of the first gains."""
    return tiles(gain_tiles(page)[:most])


def pair_headline(page: ComparisonPage, base: Configuration, other: Configuration) -> Html:
    """Return the tiles of a page about two configurations: AP, gains, time and memory."""
    items = [metric_tile(page, base), metric_tile(page, other), *gain_tiles(page)]
    key = page.time_key
    step, base_step = other.step_seconds(key), base.step_seconds(key)
    times = f"{format_value(1000 * step, 0)} ms instead of {format_value(1000 * base_step, 0)} ms"
    cost = format_value(ratio(step, base_step), 2)
    items.append(Tile("A training step costs", f"{cost} ×", note=f"{page.time_name}: {times}"))
    note = f"{other.memory:,.0f} MB instead of {base.memory:,.0f} MB"
    memory = format_value(ratio(other.memory, base.memory), 2)
    items.append(Tile("Peak memory", f"{memory} ×", note=note))
    return tiles(items)


def metric_tile(page: ComparisonPage, item: Configuration) -> Tile:
    """Return the tile with the mean of the main metric of a configuration."""
    value = item.metric(page.metric)
    note = f"{value} over the seeds" if str(value) else f"{item.epochs:g} epochs"
    return Tile(item.label, format_value(value.mean), page.metric, note)


def gain_tiles(page: ComparisonPage) -> list[Tile]:
    """Return one tile for each gain, with its interval and the paper's."""
    items = []
    for row in page.gains:
        measured = row.measured(page.by_key, page.metric)
        notes = []
        if measured.has_interval:
            notes.append(f"{CONFIDENCE:.0%} interval {measured.interval}")
        elif measured.reason:
            notes.append(measured.reason)
        if row.reported is not None:
            notes.append(f"the paper: {format_gain(row.reported)}")
        value = format_gain(measured.mean)
        strong = measured.is_clear and measured.mean > 0
        items.append(Tile(row.label, value, page.metric, "; ".join(notes), strong))
    return items


def sentences(page: ComparisonPage) -> list[str]:
    """Return one sentence for each gain: what was measured, and if it agrees with the paper."""
    measured = [row.measured(page.by_key, page.metric) for row in page.gains]
    if len(page.gains) > MAX_SENTENCES:
        return [summary(page, measured)]
    return [sentence(row, gain_, page.metric) for row, gain_ in zip(page.gains, measured)]


def summary(page: ComparisonPage, measured: Sequence[Gain]) -> str:
    """Return many gains in a few sentences. A table has each of them."""
    if page.num_seeds < 2:
        positive = sum(item.mean > 0 for item in measured)
        return f"{positive} of {len(measured)} gains are positive. One seed does not show more."
    better = [row for row, item in zip(page.gains, measured) if item.is_clear and item.mean > 0]
    worse = [row for row, item in zip(page.gains, measured) if item.is_clear and item.mean < 0]
    unclear = [row for row, item in zip(page.gains, measured) if not item.is_clear]
    text = f"Of {len(measured)} gains, {len(better)} are positive and {len(worse)} negative, each "
    text += f"with a 95 % interval on one side of zero; {len(unclear)} cannot be told from chance"
    for rows, words in ((worse, "negative"), (unclear, "not told")):
        if rows:
            text += f"; {words}: {', '.join(row.label for row in rows)}"
    contradictions = [
        row
        for row, item in zip(page.gains, measured)
        if row.reported is not None and item.is_clear and (item.mean > 0) != (row.reported > 0)
    ]
    if contradictions:
        text += f". This contradicts the paper: {', '.join(row.label for row in contradictions)}"
    elif any(row.reported is not None for row in page.gains):
        text += ". No clear gain contradicts the paper"
    return f"{text}."


def sentence(row: GainRow, measured: Gain, metric: str) -> str:
    """Return what was measured in words, and if it agrees with the paper."""
    text = f"{row.label}: {format_gain(measured.mean)} {metric}"
    if measured.has_interval:
        text += f" ({CONFIDENCE:.0%} interval {measured.interval} over {measured.seeds} seeds)"
    reported = row.reported
    if reported is None:
        return f"{text}."
    text += f"; the paper has {format_gain(reported)}"
    if not math.isfinite(measured.mean):
        return f"{text}."
    same_sign = (measured.mean > 0) == (reported > 0)
    if measured.is_clear:
        verdict = "the direction is the same" if same_sign else "this contradicts the paper"
    elif measured.has_interval:
        verdict = "the interval contains zero, so these seeds do not tell the direction"
    else:
        direction = "the same" if same_sign else "the opposite"
        few = "one seed does" if measured.seeds == 1 else "trainings of different seeds do"
        verdict = f"{direction} direction, but {few} not tell it from chance"
    return f"{text}: {verdict}."


def interval_note(page: ComparisonPage) -> str:
    """Return how intervals are computed, or that one seed has none."""
    if page.num_seeds < 2:
        return (
            "One seed has no interval: the page does not show how much of a difference is chance. "
            "Several seeds do."
        )
    return (
        "An interval is the 95 % interval of the mean gain by Student's t distribution over the "
        "differences of the seeds: the two trainings of a pair have the same seed, and so the same "
        "images in the same order."
    )


def result_section(page: ComparisonPage, title: str, *texts: str) -> Html:
    """Return the section with the texts, the gains in words, dots of all seeds, and the tables."""
    colours = family_colours(page.configurations)
    rows = []
    for item, colour in zip(page.configurations, colours):
        rows.append(DotRow(item.label, item.percentages(page.metric), colour))
    caption = "A dot for each seed, a bar at their mean." if page.num_seeds > 1 else ""
    parts = [prose(*texts, *sentences(page), interval_note(page))]
    parts.append(dot_chart(f"{page.metric} after the last epoch", page.metric, rows, caption))
    parts.append(metric_table(page))
    if page.gains:
        parts.append(gain_table(page))
    if page.num_seeds > 1:
        parts.append(seed_table(page))
    return section(title, *parts)


def metric_table(page: ComparisonPage) -> Html:
    """Return the table of all metrics and costs, with the paper's figures."""
    metrics = [name for name in page.metrics if _has_metric(page, name)]
    errors = [name for name in page.errors if _has_metric(page, name)]
    has_paper = any(item.reported is not None for item in page.configurations)
    has_spread = page.num_seeds > 1
    columns = [Column("training"), Column("K", 0), Column("epochs", 1)]
    columns.append(Column(metrics[0], 1, "max"))
    if has_spread:
        columns.append(Column("±", 1))
    if has_paper:
        columns.append(Column(f"paper's {metrics[0]}", 1))
    columns += [Column(name.replace("_", " "), 1, "max") for name in metrics[1:]]
    columns += [Column(name, 2, "min") for name in errors]
    columns += [Column(f"{page.time_name}, s", 0), Column("a step", 2), Column("peak MB", 0)]
    rows: list[list[Cell]] = []
    for item in page.configurations:
        main = item.metric(metrics[0])
        row: list[Cell] = [item.label, item.groups, item.epochs, main.mean]
        row += [main.std] if has_spread else []
        row += [item.reported] if has_paper else []
        row += [item.metric(name).mean for name in metrics[1:]]
        # Errors are not fractions, so they are not printed in percent.
        row += [item.metric(name).mean / 100 for name in errors]
        row += [getattr(item, page.time_key), page.step_ratio(item), item.memory]
        rows.append(row)
    caption = (
        f"Metrics on the validation images after the last epoch, in percent"
        f"{'; ± is the standard deviation over the seeds' if has_spread else ''}. "
        f"{page.time_name[0].upper()}{page.time_name[1:]} is that of training, without "
        f"evaluations; a step is its time over that of a step with the fewest groups."
    )
    if has_paper:
        caption += f" {page.source}".rstrip()
    return table(columns, rows, caption)


def _has_metric(page: ComparisonPage, name: str) -> bool:
    return any(name in run.metrics for item in page.configurations for run in item.runs)


def gain_table(page: ComparisonPage) -> Html:
    """Return the table of all gains, with their intervals and the paper's."""
    columns = [Column("gain"), Column(page.metric, 1), Column("95 % interval", 1)]
    columns += [Column("seeds", 0)]
    has_paper = any(row.reported is not None for row in page.gains)
    if has_paper:
        columns.append(Column("the paper's", 1))
    rows: list[list[Cell]] = []
    for row in page.gains:
        measured = row.measured(page.by_key, page.metric)
        cells: list[Cell] = [row.label, format_gain(measured.mean), measured.interval or "–"]
        cells.append(measured.seeds)
        if has_paper:
            cells.append("–" if row.reported is None else format_gain(row.reported))
        rows.append(cells)
    return table(columns, rows, "Gains in percentage points.")


def seed_table(page: ComparisonPage) -> Html:
    """Return the main metric of every seed, as a table with the seeds along its shorter side."""
    seeds = sorted({seed for item in page.configurations for seed in item.seeds})
    values = [dict(zip(item.seeds, item.percentages(page.metric))) for item in page.configurations]
    labels = [item.label for item in page.configurations]
    caption = f"{page.metric} of every seed."
    if len(labels) > MAX_COLUMNS:
        columns = [Column("training"), *(Column(f"seed {seed}", 1) for seed in seeds)]
        rows: list[list[Cell]] = []
        for label, by_seed in zip(labels, values):
            rows.append([label, *(by_seed.get(seed) for seed in seeds)])
        return table(columns, rows, caption)
    columns = [Column("seed"), *(Column(label, 1) for label in labels)]
    rows = [[str(seed), *(by_seed.get(seed) for by_seed in values)] for seed in seeds]
    return table(columns, rows, caption)


def learning_section(page: ComparisonPage) -> Html:
    """Return the section with the curves: AP by epoch and by time, instability and loss."""
    band = "Mean of the seeds; the band shows their range." if page.num_seeds > 1 else ""
    kinds = {item.baseline for item in page.configurations}
    style = "Without groups dashed, with groups bold." if len(kinds) > 1 else ""
    key = page.time_key
    longest = max(getattr(item, key) for item in page.configurations)
    unit, factor = ("min", 1 / 60) if longest > 300 else ("s", 1.0)
    read_metric = read_percent(page.metric)
    families = list(dict.fromkeys(item.family or item.key for item in page.configurations))
    if MAX_FAMILIES < len(families) < len(page.configurations):
        return section(
            "Learning",
            prose(f"One row for each detector. {style} {band}".strip()),
            charts(_family_charts(page, families, (key, unit, factor))),
        )
    by_epoch = curves(page.configurations, read_epoch, read_metric)
    by_time = curves(page.configurations, read_value(key, factor), read_metric)
    loss = curves(page.configurations, read_epoch, read_value("loss"))
    instability = curves(page.configurations, read_epoch, read_value("instability"))
    metric = page.metric
    candidates = [
        Chart(f"{metric} by epoch", "epoch", metric, by_epoch, f"{style} {band}".strip()),
        Chart(f"{metric} by {page.time_name}", f"{page.time_name} ({unit})", metric, by_time),
        Chart(
            "Instability of the matching",
            "epoch",
            "queries",
            instability,
            "Number of queries of an image, in the group that is used at inference, that are "
            "matched to another object than at the previous evaluation (the paper's Fig. 5).",
        ),
        Chart("Training loss", "epoch", "loss", loss, "The mean over groups."),
    ]
    return section("Learning", charts([chart for chart in candidates if not chart.empty]))


def _family_charts(
    page: ComparisonPage, families: Sequence[str], time: tuple[str, str, float]
) -> list[Chart]:
    """Return two charts for each family: the main metric by epoch, and by time.

    ``time`` is the name of the time in the curves, its unit, and the factor of the unit.
    """
    key, unit, factor = time
    read_metric = read_percent(page.metric)
    items = []
    for family in families:
        members = [item for item in page.configurations if item.family == family]
        title = members[0].label.partition(", K")[0]
        by_epoch = curves(members, read_epoch, read_metric)
        by_time = curves(members, read_value(key, factor), read_metric)
        label = f"{page.time_name} ({unit})"
        items.append(Chart(f"{title}, by epoch", "epoch", page.metric, by_epoch))
        items.append(Chart(f"{title}, by {page.time_name}", label, page.metric, by_time))
    return items


def equal_time_section(page: ComparisonPage, pairs: Sequence[tuple[str, str]]) -> Html:
    """Return the section with the gains at the same time of training, read from the curves.

    ``pairs`` are keys of a configuration and of the one that it is compared with.
    """
    key = page.time_key
    columns = [Column("pair"), Column(page.time_name, 0), Column(page.metric, 1)]
    columns.append(Column("95 % interval", 1))
    rows: list[list[Cell]] = []
    for of, over in pairs:
        base, other = page.by_key[over], page.by_key[of]
        measured, end = gain_at_equal_time(base, other, page.metric, key)
        label = f"{other.label} over {base.label}"
        interval = measured.interval or "–"
        rows.append([label, format_seconds(end), format_gain(measured.mean), interval])
    text = (
        "At the time when the shorter training of a pair ends, the other one is on the way: its "
        "learning rate has not fallen yet. So the longer training is at a disadvantage here, and a "
        "training whose length is chosen for that time is the fair comparison."
    )
    caption = f"{page.metric} at equal {page.time_name}, read from the curves."
    return section(f"At equal {page.time_name}", prose(text), table(columns, rows, caption))
