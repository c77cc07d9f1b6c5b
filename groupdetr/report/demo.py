"""The page of ``groupdetr demo``: the same detector trained with one group and with K groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.console.text import quantity
from groupdetr.engine.run_folder import write_text
from groupdetr.report.chart import Chart, charts
from groupdetr.report.comparison import (
    LogRow,
    MeanStd,
    RunsOverSeeds,
    RunSummary,
    collect_seeds,
    cost_tile,
    curves,
    format_gain,
    format_memory,
    format_seconds,
    format_std,
    gain,
    instability_chart,
    metric_by_seed,
    protocol,
    read_epoch,
    read_percent,
    read_value,
)
from groupdetr.report.explanation import explain_groups
from groupdetr.report.page import (
    Cell,
    Column,
    Html,
    Tile,
    facts,
    page,
    prose,
    section,
    table,
    tiles,
)


@dataclass(frozen=True)
class ReportSubject:
    """What the detectors of a page were trained on, and the metrics that compare them."""

    data_name: str
    metrics: Sequence[str]  # fractions in [0,1], the main one first; a run may lack some of them
    caption: str  # of the table of metrics
    errors: Sequence[str] = ()  # further metrics of which lower is better

    @property
    def main_metric(self) -> str:
        return self.metrics[0]


@dataclass(frozen=True)
class DemoResults:
    """Everything that the page shows. ``runs``, in any order, have several K, and several seeds."""

    runs: Sequence[RunSummary]
    subject: ReportSubject
    # The baseline trained again, for as many epochs as take the time of the best K.
    longer: Sequence[RunSummary] = ()
    sections: Sequence[Html] = ()  # sections that show detections
    details: Mapping[str, object] = field(default_factory=dict)  # data, versions, command


def write_demo_report(path: Path | str, demo: DemoResults) -> None:
    """Write the page of the demo as one self-contained HTML file.

    The smallest K is the baseline. It is compared with the best of the other K.
    """
    by_groups = sorted(demo.runs, key=lambda run: run.groups)
    base, *others = collect_seeds(by_groups)
    if not others:
        raise ValueError("the report needs runs with at least two numbers of groups")
    subject = demo.subject
    best = max(others, key=lambda other: other.metric(subject.main_metric).mean)
    longer = collect_seeds(demo.longer)
    configurations = [base, *longer, *others]
    body = [
        _headline(base, best, longer, subject.main_metric),
        explain_groups(),
        _learning(configurations, best, longer, subject),
        _precision(configurations, base, best, subject),
        *demo.sections,
        section("How this page was made", facts({**protocol(demo.runs), **demo.details})),
    ]
    title = _title(base, best, subject.main_metric)
    document = page("groupdetr demo", title, _lead(base, best, subject), body)
    write_text(Path(path), document)


def _title(base: RunsOverSeeds, best: RunsOverSeeds, metric: str) -> str:
    improvement = format_gain(gain(base, best, metric).mean)
    return f"{best.groups} groups of queries instead of {base.groups}: {improvement} {metric}"


def _lead(base: RunsOverSeeds, best: RunsOverSeeds, subject: ReportSubject) -> str:
    metric = subject.main_metric
    epochs = max(run.epochs for run in base.runs)
    num_seeds = len(base.runs)
    base_score = f"{base.metric(metric).mean:.1f} {metric}"
    best_score = f"{best.metric(metric).mean:.1f}"
    setup = (
        f"The same small detector was trained from scratch on {subject.data_name}, with "
        f"K = {base.groups} and with K = {best.groups} groups of object queries. Seed, data, their "
        "order, epochs and schedule are the same, and so is the network that is used after "
        "training."
    )
    outcome = f"After {epochs:g} epochs the first reaches {base_score}, the second {best_score}"
    average = f", on average over {num_seeds} seeds." if num_seeds > 1 else "."
    return f"{setup} {outcome}{average}"


def _headline(
    base: RunsOverSeeds, best: RunsOverSeeds, longer: Sequence[RunsOverSeeds], metric: str
) -> Html:
    items = [
        _metric_tile(f"Trained with {_num_groups(base)}", base.metric(metric), metric),
        _metric_tile(f"Trained with {_num_groups(best)}", best.metric(metric), metric),
        _gain_tile("Gain at equal epochs", gain(base, best, metric), metric, strong=True),
    ]
    for longer_base in longer:
        equal_time = gain(longer_base, best, metric)
        items.append(_gain_tile("Gain at equal wall time", equal_time, metric))
    items.append(cost_tile("Training time", base.seconds, best.seconds, format_seconds))
    items.append(cost_tile("Peak memory", base.memory, best.memory, format_memory))
    return tiles(items)


def _num_groups(configuration: RunsOverSeeds) -> str:
    return quantity(configuration.groups, "group")


def _metric_tile(label: str, value: MeanStd, metric: str) -> Tile:
    return Tile(label, f"{value.mean:.1f}", metric, format_std(value))


def _gain_tile(label: str, value: MeanStd, metric: str, strong: bool = False) -> Tile:
    return Tile(label, format_gain(value.mean), metric, format_std(value), strong)


def _learning(
    configurations: Sequence[RunsOverSeeds],
    best: RunsOverSeeds,
    longer: Sequence[RunsOverSeeds],
    subject: ReportSubject,
) -> Html:
    """Return the section with the curves of metrics, loss and instability."""
    metric, second_metric, *_ = subject.metrics
    band = "Mean of the seeds; the band shows their range." if len(best.runs) > 1 else ""
    if max(configuration.seconds for configuration in configurations) > 300:
        unit, unit_seconds = "min", 60
    else:
        unit, unit_seconds = "s", 1

    def read_time(row: LogRow) -> float:
        return row["seconds"] / unit_seconds

    metric_by_epoch = curves(configurations, read_epoch, read_percent(metric))
    metric_by_time = curves(configurations, read_time, read_percent(metric))
    second_by_epoch = curves(configurations, read_epoch, read_percent(second_metric))
    loss_by_epoch = curves(configurations, read_epoch, read_value("loss"))
    time_label = f"training time ({unit})"
    candidates = [
        Chart(f"{metric} by epoch", "epoch", metric, metric_by_epoch, band),
        Chart(f"{metric} by wall time", time_label, metric, metric_by_time),
        Chart(f"{second_metric} by epoch", "epoch", second_metric, second_by_epoch),
        Chart("Training loss", "epoch", "loss", loss_by_epoch, "The mean over groups."),
        instability_chart(configurations),
    ]
    nonempty = [chart for chart in candidates if not chart.empty]
    return section("Learning", prose(_equal_time_text(best, longer, subject)), charts(nonempty))


def _equal_time_text(
    best: RunsOverSeeds, longer: Sequence[RunsOverSeeds], subject: ReportSubject
) -> str:
    """Return sentences that compare at equal wall time, as Table 2 of the paper does."""
    metric = subject.main_metric
    sentences = [
        "Training with groups takes longer per step, so a comparison at equal epochs is not enough."
    ]
    for base in longer:
        sentences.append(
            f"At equal wall time: trained for {base.runs[0].epochs:g} epochs, which take "
            f"{format_seconds(base.seconds)}, {_num_groups(base)} reaches "
            f"{base.metric(metric).mean:.1f} {metric}; {_num_groups(best)} had reached "
            f"{best.metric(metric).mean:.1f} in {format_seconds(best.seconds)}."
        )
    sentences.append(
        "On COCO, the paper measured that a step takes 1.2 times as long with 11 groups, because "
        "most of the work is in backbone and encoder, which all groups share. In a network as "
        "small as this one, the queries are a larger part of the work."
    )
    return " ".join(sentences)


def _precision(
    configurations: Sequence[RunsOverSeeds],
    base: RunsOverSeeds,
    best: RunsOverSeeds,
    subject: ReportSubject,
) -> Html:
    """Return the section with the table of all metrics, and that of the seeds if there are any."""
    # Only metrics that the evaluation computed have a column.
    metrics = [name for name in subject.metrics if name in base.runs[0].metrics]
    errors = [name for name in subject.errors if name in base.runs[0].metrics]
    columns = [Column("groups")]
    columns += [Column(name.replace("_", " "), 1, "max") for name in metrics]
    columns += [Column(name, 2, "min") for name in errors]
    columns += [Column("seconds", 0), Column("peak MB", 0)]
    rows = [_metric_row(configuration, metrics, errors) for configuration in configurations]
    tables = [table(columns, rows, subject.caption)]
    if len(base.runs) > 1:
        tables.append(_seed_table(configurations, base, best, subject.main_metric))
    return section("Accuracy", *tables)


def _metric_row(
    configuration: RunsOverSeeds, metrics: Sequence[str], errors: Sequence[str]
) -> list[Cell]:
    row: list[Cell] = [configuration.name]
    row += [configuration.metric(name).mean for name in metrics]
    # Errors are not fractions, so they are not printed in percent.
    row += [configuration.metric(name).mean / 100 for name in errors]
    row += [configuration.seconds, configuration.memory]
    return row


def _seed_table(
    configurations: Sequence[RunsOverSeeds],
    base: RunsOverSeeds,
    best: RunsOverSeeds,
    metric: str,
) -> Html:
    """Return a table with one row for each seed. It shows if the gain is larger than the noise."""
    columns = [Column("seed")]
    columns += [Column(configuration.name, 1) for configuration in configurations]
    columns.append(Column("gain", 1))
    rows: list[list[Cell]] = []
    for seed, values in metric_by_seed(configurations, metric).items():
        improvement = format_gain(values[best.name] - values[base.name])
        rows.append([str(seed), *values.values(), improvement])
    caption = f"{metric} of every seed, and the gain of {best.name} over {base.name}."
    return table(columns, rows, caption)
