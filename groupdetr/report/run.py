"""The page of one training run: metrics, curves, a table of classes, and detections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from groupdetr.console.text import quantity
from groupdetr.engine.run_folder import write_text
from groupdetr.evaluation.coco import METRICS, ClassAP, CocoEvaluation
from groupdetr.evaluation.error_analysis import ErrorAnalysis, ImageErrors
from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.comparison import LogRow, RunSummary
from groupdetr.report.errors import error_sections, threshold_tile
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

LoadImage = Callable[[ImageErrors], Image.Image | None]  # None if the image is not there any more
_METRIC_TILES = {"AP": "AP", "AP50": "AP at IoU 0.5", "AR100": "Average recall"}  # metric: label


@dataclass(frozen=True)
class RunReport:
    """Everything that the page of a run shows.

    Rows of ``summary.curve`` may have any of epoch, step, seconds, loss, AP, AP50 and lr. Each key
    that starts with lr is a line of its own. Rows need not have all keys.
    """

    name: str
    detector: str
    summary: RunSummary
    evaluation: CocoEvaluation
    class_names: Sequence[str]
    panels: Sequence[DetectionPanel] = ()
    # What the detector misses and makes up, and a function that loads an image of it
    errors: ErrorAnalysis | None = None
    load_image: LoadImage | None = None
    data: Mapping[str, object] = field(default_factory=dict)  # statistics of the dataset
    details: Mapping[str, object] = field(default_factory=dict)  # settings, versions, command


def write_run_report(path: Path | str, run: RunReport) -> None:
    """Write the page of a run as one self-contained HTML file."""
    body = [
        _headline(run),
        learning_section(run.summary, ("AP", "AP50"), "images"),
        precision_section(run.evaluation),
    ]
    if run.errors is not None and run.load_image is not None:
        body += error_sections(run.errors, run.load_image)
    if run.panels:
        text = (
            "Validation images. As many detections are drawn as there are objects, those with the "
            "highest scores."
        )
        strips = detection_strips(run.panels, run.class_names)
        body.append(section("Detections", prose(text), strips))
    if run.data:
        body.append(section("Data", facts(run.data)))
    if run.details:
        body.append(section("Run", facts(run.details)))
    document = page("groupdetr run", run.name, lead_paragraph(run.detector, run.summary), body)
    write_text(Path(path), document)


def lead_paragraph(detector: str, summary: RunSummary) -> str:
    """Return the first paragraph of the page."""
    groups = quantity(summary.groups, "group")
    return (
        f"{detector}, trained with {groups} of queries for {summary.epochs:g} epochs in "
        f"{summary.seconds / 60:,.1f} minutes, seed {summary.seed}."
    )


def _headline(run: RunReport) -> Html:
    return tiles([*metric_tiles(run.evaluation, run.errors), *cost_tiles(run.summary)])


def metric_tiles(evaluation: CocoEvaluation, errors: ErrorAnalysis | None) -> list[Tile]:
    """Return three tiles: AP, AP50, and the best F1, or the recall if there is no best F1."""
    items = []
    for metric, label in _METRIC_TILES.items():
        value = number(100 * evaluation.stats[metric], 1)
        items.append(Tile(label, value, strong=metric == "AP"))
    if best := threshold_tile(errors):
        items[-1:] = best
    return items


def cost_tiles(summary: RunSummary) -> list[Tile]:
    """Return the tiles of training time, memory and groups."""
    return [
        Tile("Training time", f"{summary.seconds / 60:,.1f}", "min"),
        Tile("Peak memory", f"{summary.peak_memory_mb:,.0f}", "MB"),
        Tile("Groups in training", str(summary.groups), note="one of them is used at inference"),
    ]


def learning_section(summary: RunSummary, metrics: Sequence[str], samples: str) -> Html:
    """Return the section with the curves of the training.

    ``metrics`` are the names of metrics in [0,1], which are drawn in percent. ``samples`` names
    what they are computed on: images or samples.
    """
    curve = summary.curve
    title = f"{' and '.join(metrics)} on the validation {samples}"
    metric_lines = [_line(curve, metric, metric, 100) for metric in metrics]
    rate_keys = sorted({key for row in curve for key in row if key.startswith("lr")})
    rate_lines = [_line(curve, key, key.removeprefix("lr_")) for key in rate_keys]
    candidates = [
        Chart(title, "epoch", metrics[0], metric_lines),
        Chart("Training loss", "epoch", "loss", [_line(curve, "loss", "loss")]),
        _instability_chart(summary),
        Chart("Learning rate", "epoch", "rate", rate_lines),
    ]
    return section("Learning", charts([chart for chart in candidates if not chart.empty]))


def _instability_chart(summary: RunSummary) -> Chart:
    lines = [_line(summary.curve, "instability", "primary group")]
    if summary.groups > 1:
        lines.append(_line(summary.curve, "instability_groups", "mean of groups"))
    caption = (
        "Number of queries of an image that are matched to another object than at the previous "
        "evaluation."
    )
    return Chart("Instability of the matching", "epoch", "queries", lines, caption)


def _line(curve: Sequence[LogRow], key: str, name: str, factor: float = 1) -> Series:
    """Return a value by epoch, from the rows that have it."""
    rows = [row for row in curve if "epoch" in row and key in row]
    epochs = [row["epoch"] for row in rows]
    values = [factor * row[key] for row in rows]
    return Series(name, epochs, values)


def write_evaluation_report(
    path: Path | str,
    name: str,
    lead: str,
    evaluation: CocoEvaluation,
    load_image: LoadImage,
) -> None:
    """Write the page of one evaluation, with the errors of the detector, as one HTML file."""
    body = [tiles(metric_tiles(evaluation, evaluation.errors)), precision_section(evaluation)]
    if evaluation.errors is not None:
        body += error_sections(evaluation.errors, load_image)
    write_text(Path(path), page("groupdetr val", name, lead, body))


def precision_section(evaluation: CocoEvaluation) -> Html:
    """Return the section with the average precision and recall, and that of each class."""
    precision = _metric_table("precision", METRICS[:6], evaluation)
    recall = _metric_table("recall", METRICS[6:], evaluation)
    return section("Average precision", precision, recall, _class_table(evaluation))


def _metric_table(title: str, names: Sequence[str], evaluation: CocoEvaluation) -> Html:
    """Return a table with one row for each kind of IoU, box or mask, that has these metrics."""
    columns = [Column("")]
    columns += [Column(name.replace("_", " "), 1) for name in names]
    rows: list[list[Cell]] = []
    for kind, metrics in evaluation.by_kind().items():
        if names[0] in metrics:
            values = [100 * metrics.get(name, math.nan) for name in names]
            rows.append([f"{kind} IoU", *values])
    return table(columns, rows, f"Average {title} over all classes, in percent.")


def _class_table(evaluation: CocoEvaluation) -> Html:
    columns = [
        Column("class"),
        Column("AP", 1),
        Column("AP50", 1),
        Column("objects", 0),
        Column("images", 0),
    ]

    def sort_key(row: ClassAP) -> float:
        # Classes without an object have no AP and come last.
        return 1 if math.isnan(row.AP) else -row.AP

    rows: list[list[Cell]] = []
    for row in sorted(evaluation.per_class, key=sort_key):
        rows.append([row.name, 100 * row.AP, 100 * row.AP50, row.objects, row.images])
    caption = (
        "Every class, the best first. A dash means that no validation image has an object of it."
    )
    return table(columns, rows, caption)
