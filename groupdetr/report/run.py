"""The page of one training run: its figures, its curves, every class, and what it finds in pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.evaluation.coco import FIGURES, Evaluation
from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.comparison import RunSummary
from groupdetr.report.page import (
    Cell,
    Column,
    Html,
    Tile,
    facts,
    number,
    page,
    prose,
    section,
    table,
    tiles,
)
from groupdetr.report.panels import DetectionPanel, detection_strips

_TILES = {"AP": "AP", "AP50": "AP at IoU 0.5", "AR100": "Average recall"}


@dataclass(frozen=True)
class RunReport:
    """All that the page shows. ``summary.curve`` may hold any of epoch, step, seconds, loss, AP, AP50 and lr...:
    each key that starts with lr is a line of its own. Rows need not have all keys."""

    name: str
    detector: str
    summary: RunSummary
    evaluation: Evaluation
    class_names: Sequence[str]
    panels: Sequence[DetectionPanel] = ()
    data: Mapping[str, object] = field(default_factory=dict)  # the data card
    about: Mapping[str, object] = field(
        default_factory=dict
    )  # configuration, versions, machine, command


def write_run_report(path: Path | str, run: RunReport) -> None:
    """One self-contained HTML file."""
    body = [
        _headline(run),
        learning(run.summary, ("AP", "AP50"), "pictures"),
        _precision(run.evaluation),
        *_rest(run),
    ]
    Path(path).write_text(
        page("groupdetr run", run.name, lead(run.detector, run.summary), body), encoding="utf-8"
    )


def lead(detector: str, summary: RunSummary) -> str:
    groups = f"{summary.groups} group{'s' * (summary.groups != 1)} of queries"
    return (
        f"{detector}, trained with {groups} for {summary.epochs:g} epochs in {summary.seconds / 60:,.1f} minutes, "
        f"seed {summary.seed}."
    )


def _headline(run: RunReport) -> Html:
    stats = run.evaluation.stats
    shown = [
        Tile(label, number(100 * stats[name], 1), strong=name == "AP")
        for name, label in _TILES.items()
    ]
    return tiles([*shown, *cost(run.summary)])


def cost(summary: RunSummary) -> list[Tile]:
    return [
        Tile("Training time", f"{summary.seconds / 60:,.1f}", "min"),
        Tile("Peak memory", f"{summary.peak_memory_mb:,.0f}", "MB"),
        Tile("Groups in training", str(summary.groups), note="one of them answers"),
    ]


def learning(summary: RunSummary, figures: Sequence[str], seen: str) -> Html:
    """Curves of a training: of ``figures``, shares, on what is ``seen`` in validation, and of the loss."""
    curve = summary.curve
    rates = sorted({key for row in curve for key in row if key.startswith("lr")})
    title = f"{' and '.join(figures)} on the validation {seen}"
    drawn = [
        Chart(title, "epoch", figures[0], [_line(curve, key, key, 100) for key in figures]),
        Chart("Training loss", "epoch", "loss", [_line(curve, "loss", "loss")]),
        _stability(summary),
        Chart(
            "Learning rate",
            "epoch",
            "rate",
            [_line(curve, key, key.removeprefix("lr_")) for key in rates],
        ),
    ]
    return section("Learning", charts([chart for chart in drawn if not chart.empty]))


def _stability(summary: RunSummary) -> Chart:
    lines = [_line(summary.curve, "instability", "primary group")]
    if summary.groups > 1:
        lines.append(_line(summary.curve, "instability_groups", "mean of groups"))
    words = "Queries of a picture that have another object than at the evaluation before."
    return Chart("Instability of the matching", "epoch", "queries", lines, words)


def _line(curve: Sequence[Mapping[str, float]], key: str, name: str, factor: float = 1) -> Series:
    """A value by epoch, where it was written."""
    points = [(row["epoch"], factor * row[key]) for row in curve if "epoch" in row and key in row]
    return Series(name, [x for x, _ in points], [y for _, y in points])


def _precision(evaluation: Evaluation) -> Html:
    figures = [
        _figures("precision", FIGURES[:6], evaluation),
        _figures("recall", FIGURES[6:], evaluation),
    ]
    return section("Average precision", *figures, _classes(evaluation))


def _figures(title: str, names: Sequence[str], evaluation: Evaluation) -> Html:
    """A row for each kind of AP that has them."""
    rows: list[list[Cell]] = [
        [f"{kind} IoU", *(100 * figures.get(name, math.nan) for name in names)]
        for kind, figures in evaluation.by_kind().items()
        if names[0] in figures
    ]
    head = [Column(""), *(Column(name.replace("_", " "), 1) for name in names)]
    return table(head, rows, f"Average {title} over all classes, in points.")


def _classes(evaluation: Evaluation) -> Html:
    head = [
        Column("class"),
        Column("AP", 1),
        Column("AP50", 1),
        Column("objects", 0),
        Column("images", 0),
    ]
    by_ap = sorted(
        evaluation.per_class, key=lambda row: -1 if math.isnan(row.AP) else row.AP, reverse=True
    )
    rows: list[list[Cell]] = [
        [c.name, 100 * c.AP, 100 * c.AP50, c.objects, c.images] for c in by_ap
    ]
    return table(
        head, rows, "Every class, the best first; a dash where no validation picture shows it."
    )


def _rest(run: RunReport) -> list[Html]:
    words = "Validation pictures, with as many detections as there are objects, the surest first."
    pictures = section("What it finds", prose(words), detection_strips(run.panels, run.class_names))
    cards = [
        section(title, facts(rows))
        for title, rows in (("Data", run.data), ("Run", run.about))
        if rows
    ]
    return [pictures, *cards] if run.panels else cards
