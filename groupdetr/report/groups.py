"""The page of `groupdetr groups`: what the groups of one trained detector know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupdetr.console.text import quantity
from groupdetr.engine.run_folder import write_text
from groupdetr.evaluation.coco import CocoEvaluation
from groupdetr.report.chart import Chart, Series, charts, numbered, svg_text
from groupdetr.report.page import (
    CaptionedImage,
    Cell,
    Column,
    Html,
    Tile,
    escape,
    facts,
    gallery,
    join,
    number,
    page,
    prose,
    section,
    swatches,
    table,
    tiles,
)
from groupdetr.visualize.images import draw_groups, palette, scale_for

TABLE_METRICS = ("AP", "AP50", "AP75")
_MAP_SIDE = 150  # pixels of the map of the queries of one group
_MAX_RADIUS = 7.0  # of a query
_SHOWN_TWINS = 10
_BAR_HEIGHT = 26


@dataclass(frozen=True)
class FusedGroups:
    """The evaluation of the fused boxes of several groups (`--vote`)."""

    groups: int  # how many are fused
    evaluation: CocoEvaluation
    seconds: float  # of the fusion, for each image


@dataclass(frozen=True)
class ShownTwins:
    """Two queries of different groups with nearly the same reference point."""

    name: str
    other: str
    distance: float  # in [0,1], as a fraction of the sides of the image
    wins: int
    shared_wins: int


@dataclass(frozen=True)
class QueryMap:
    """The use of K groups of N queries."""

    wins: NDArray[np.int64]  # [K,N] objects that each query wins
    dead: NDArray[np.bool_]  # [K,N]
    points: NDArray[np.float64]  # [K,N,2] x, y in [0,1]
    is_fixed: bool  # True if the points are the same in every image
    never_match: int
    never_score: int
    min_score: float  # that a query that scores reaches
    num_twins: int
    with_twin: int  # queries that have a twin
    twin_distance: float  # that twins have at most
    twins: Sequence[ShownTwins] = ()


@dataclass(frozen=True)
class ClassAgreement:
    """The agreement of the groups about the objects of a class, or of all classes."""

    name: str
    detected_by: Sequence[int]  # [K+1] the number of objects that 0, 1, ..., K groups detect
    box_spread: float  # mean of the objects that two groups or more detect; nan without any
    score_spread: float

    @property
    def objects(self) -> int:
        return sum(self.detected_by)


@dataclass(frozen=True)
class DisputedImage:
    """An image with T objects about which the groups do not agree, in pixels."""

    image: Image.Image
    caption: str
    object_boxes: NDArray[np.float64]  # [T,4] x0, y0, x1, y1
    group_boxes: NDArray[np.float64]  # [T,K,4]; nan for groups that do not detect the object


@dataclass(frozen=True)
class UncertaintyCurve:
    """How well one measure of uncertainty predicts the errors of the detections."""

    name: str
    aurc: float
    aurc_box: float
    correlation: float
    curve: Sequence[float]  # [101] part of false positives by coverage


@dataclass(frozen=True)
class UncertaintyReport:
    """The calibration of several measures of uncertainty, on the same detections."""

    detections: int
    false: int  # of these, false positives at an IoU of 0.5
    threshold: float  # the score that the detections have at least
    measures: Sequence[UncertaintyCurve]


@dataclass(frozen=True)
class GroupsReport:
    """Everything that the page shows."""

    name: str
    lead: str
    answering: int  # the group that runs at inference
    groups: Sequence[CocoEvaluation]  # [K] of each group alone
    fused: Sequence[FusedGroups]
    seconds_one: float  # the network with one group, for one image; nan if it was not measured
    seconds_all: float  # with all groups
    queries: QueryMap
    all_objects: ClassAgreement
    per_class: Sequence[ClassAgreement]
    threshold: float  # of the score, from which a group detects an object
    disputed: Sequence[DisputedImage] = ()
    uncertainty: UncertaintyReport | None = None  # None if no detection reaches the threshold
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The group with the highest AP. Of equal ones, the answering group, then the first."""
        order = [self.answering, *range(len(self.groups))]
        return max(order, key=lambda group: self.groups[group].stats["AP"])


def write_groups_report(path: Path | str, report: GroupsReport) -> None:
    """Write the page as one self-contained HTML file."""
    body = [
        _headline(report),
        _groups_section(report),
        _ways_section(report),
        _queries_section(report.queries),
        _agreement_section(report),
        *_uncertainty_sections(report.uncertainty),
    ]
    if report.details:
        body.append(section("Evaluation", facts(report.details)))
    write_text(Path(path), page("groupdetr groups", report.name, report.lead, body))


def _percent(value: float) -> str:
    return number(100 * value, 1)


def _headline(report: GroupsReport) -> Html:
    aps = [group.stats["AP"] for group in report.groups]
    answering, best = report.groups[report.answering], report.groups[report.best]
    detected_by_all = report.all_objects.detected_by[-1] / max(1, report.all_objects.objects)
    anyone = 1 - report.all_objects.detected_by[0] / max(1, report.all_objects.objects)
    items = [
        Tile(
            "AP of the group that answers",
            _percent(answering.stats["AP"]),
            note=f"group {report.answering}, one decoder",
            strong=True,
        ),
        Tile(
            "Median AP of the groups",
            _percent(median(aps)),
            note=f"from {_percent(min(aps))} to {_percent(max(aps))}",
        ),
        Tile("AP of the best group", _percent(best.stats["AP"]), note=f"group {report.best}"),
    ]
    if report.fused:
        most = report.fused[-1]
        items.append(
            Tile(
                f"AP of {most.groups} groups fused",
                _percent(most.evaluation.stats["AP"]),
                note=f"{most.groups} decoders",
            )
        )
    items += [
        Tile(
            "Objects that all groups detect",
            number(100 * detected_by_all, 0),
            "%",
            note=f"{number(100 * anyone, 0)} % are detected by at least one group",
        ),
        Tile(
            "Dead queries",
            str(int(report.queries.dead.sum())),
            note=f"of {report.queries.dead.size:,}: they never win an object and never score",
        ),
    ]
    return tiles(items)


def _groups_section(report: GroupsReport) -> Html:
    """Return the section with the AP of each group (Fig. 4)."""
    aps = [100 * group.stats["AP"] for group in report.groups]
    indices = list(range(len(aps)))
    middle = median(aps)
    lines = [
        # A gap after every point: the order of the groups means nothing, so no line joins them.
        Series("each group alone", _with_gaps(indices), _with_gaps(aps)),
        Series(f"median {middle:.1f}", [0, len(aps) - 1], [middle, middle]),
    ]
    chart = Chart("AP of each group", "group", "AP", lines, legend=True)
    columns = [Column("group"), *(Column(name, 1, "max") for name in TABLE_METRICS)]
    rows: list[list[Cell]] = []
    for index, group in enumerate(report.groups):
        name = f"group {index}" + (" (answers)" if index == report.answering else "")
        rows.append([name, *(100 * group.stats[metric] for metric in TABLE_METRICS)])
    text = (
        "Every group of queries is a detector of its own, which shares all other weights. In "
        "Fig. 4 of the paper they are about equally good, so that it hardly matters which one runs "
        f"at inference. Here their AP differs by {max(aps) - min(aps):.1f}."
    )
    caption = "Each group evaluated alone, in percent."
    return section(
        "Every group is a detector", prose(text), charts([chart]), table(columns, rows, caption)
    )


def _with_gaps(values: Sequence[float]) -> list[float]:
    """Return the values with a nan after each of them, which interrupts the line of a chart."""
    return [value for pair in zip(values, [math.nan] * len(values)) for value in pair]


def _ways_section(report: GroupsReport) -> Html:
    """Return the section that compares one group, the best group, and fused groups."""
    rows: list[list[Cell]] = []
    one, everything = 1000 * report.seconds_one, 1000 * report.seconds_all
    answering, best = report.groups[report.answering], report.groups[report.best]

    def row(name: str, evaluation: CocoEvaluation, decoders: int, time: float) -> list[Cell]:
        metrics = [100 * evaluation.stats[metric] for metric in TABLE_METRICS]
        gain = 100 * (evaluation.stats["AP"] - answering.stats["AP"])
        return [name, *metrics, gain, decoders, time]

    rows.append(row(f"group {report.answering}, as trained", answering, 1, one))
    rows.append(row(f"--best: group {report.best}", best, 1, one))
    num_groups = len(report.groups)
    for fused in report.fused:
        # Between one group and all groups, the time of the decoder grows with their number.
        share = (fused.groups - 1) / max(1, num_groups - 1)
        time = one + share * (everything - one) + 1000 * fused.seconds
        rows.append(row(f"--vote {fused.groups}", fused.evaluation, fused.groups, time))
    columns = [
        Column("detections of"),
        *(Column(name, 1, "max") for name in TABLE_METRICS),
        Column("gain in AP", 1),
        Column("decoders", 0),
        Column("ms an image", 0, "min"),
    ]
    text = (
        "The best group costs nothing at inference: groupdetr groups RUN --best writes weights in "
        "which it is the one that answers. Its AP here is that of the images it was chosen on, so "
        "a part of the gain is chance. Fused groups (--vote) cost one decoder each."
    )
    caption = (
        "AP in percent. The times are those of the network on this machine, one image at a time, "
        "and of the fusion."
    )
    return section(
        "One group, the best group, or several", prose(text), table(columns, rows, caption)
    )


def _queries_section(queries: QueryMap) -> Html:
    """Return the section with the map of the reference points."""
    num_groups, num_queries = queries.wins.shape
    text = (
        "A disc is a query, at its reference point. Its area is the number of objects that the "
        "query wins: those that the matching of the training assigns to it in the last decoder "
        f"layer. {queries.never_match:,} of the {queries.wins.size:,} queries never win an object "
        f"(small rings), and {queries.never_score:,} never reach a score of {queries.min_score:g}. "
        "Queries that do neither are dead (crosses)."
    )
    paragraphs = [text]
    if not queries.is_fixed:
        paragraphs.append(
            "The reference points of this detector depend on the image. The map shows their means "
            "over all images, and there are no twins."
        )
    maps = join(_map(queries, group) for group in range(num_groups))
    caption = (
        f"The {num_queries} queries of each of the {num_groups} groups in the frame of the image. "
        "Point at a disc to see its number and its objects."
    )
    figure = numbered(Html(f'<div class="maps">\n{maps}\n</div>'), caption)
    parts = [prose(*paragraphs), figure]
    if queries.is_fixed:
        parts += _twins(queries)
    return section("Where the queries look, and which ones are used", *parts)


def _map(queries: QueryMap, group: int) -> Html:
    """Return the map of one group as SVG."""
    red, green, blue = palette(group)
    colour = f"rgb({red},{green},{blue})"
    most = max(1, int(queries.wins.max()))
    margin = _MAX_RADIUS + 1
    side = _MAP_SIDE + 2 * margin
    parts = [
        f'<rect x="{margin}" y="{margin}" width="{_MAP_SIDE}" height="{_MAP_SIDE}" '
        'fill="none" class="axis"/>'
    ]
    # Small discs come last, on top of large ones.
    for query in np.argsort(-queries.wins[group], kind="stable").tolist():
        x, y = (margin + _MAP_SIDE * queries.points[group, query].clip(0, 1)).tolist()
        wins = int(queries.wins[group, query])
        title = f"<title>query {query}: {quantity(wins, 'object')}</title>"
        if queries.dead[group, query]:
            d = f"M{x - 2:.1f} {y - 2:.1f}l4 4m0 -4l-4 4"
            parts.append(f'<path d="{d}" class="axis">{title}</path>')
            continue
        centre = f'cx="{x:.1f}" cy="{y:.1f}"'
        if wins == 0:
            style = f"fill:none;stroke:{colour}"
            parts.append(f'<circle {centre} r="1.6" style="{style}">{title}</circle>')
            continue
        radius = max(1.5, _MAX_RADIUS * math.sqrt(wins / most))
        style = f"fill:{colour};fill-opacity:.75;stroke:var(--paper)"
        parts.append(f'<circle {centre} r="{radius:.1f}" style="{style}">{title}</circle>')
    content = join(Html(part) for part in parts)
    view = f'viewBox="0 0 {side:g} {side:g}"'
    svg = f'<svg {view} role="img" aria-label="queries of group {group}">\n{content}\n</svg>'
    return Html(f"<div>{svg}<p>group {group}</p></div>")


def _twins(queries: QueryMap) -> Iterator[Html]:
    """Yield what the page says about queries of different groups at the same place."""
    yield prose(
        "Twins are queries of different groups whose reference points are at most "
        f"{100 * queries.twin_distance:g} % of the image apart. There are "
        f"{quantity(queries.num_twins, 'pair')}, and {queries.with_twin:,} of the "
        f"{queries.wins.size:,} queries have a twin."
    )
    if not queries.twins:
        return
    rows: list[list[Cell]] = []
    for twins in queries.twins[:_SHOWN_TWINS]:
        distance = 100 * twins.distance
        rows.append([twins.name, twins.other, distance, twins.wins, twins.shared_wins])
    columns = [
        Column("query"),
        Column("its twin"),
        Column("distance, %", 2),
        Column("objects", 0),
        Column("the same for both", 0),
    ]
    yield table(columns, rows, "The nearest twins, and the objects that both of them win.")


def _agreement_section(report: GroupsReport) -> Html:
    """Return the section about the objects and the groups that detect them."""
    num_groups = len(report.groups)
    text = (
        f"A group detects an object if it has a box of its class with an IoU of at least 0.5 and a "
        f"score of at least {report.threshold:.2f}, the threshold with the best F1 of the group "
        "that answers. The spread of the boxes is 1 minus the mean IoU of all pairs of groups."
    )
    columns = [
        Column("class"),
        Column("objects", 0),
        Column("all groups, %", 0),
        Column("some, %", 0),
        Column("none, %", 0),
        Column("spread of boxes", 3),
        Column("of scores", 3),
    ]
    rows: list[list[Cell]] = []
    classes = sorted(report.per_class, key=lambda row: -row.objects)
    for row in [report.all_objects, *classes]:
        if not row.objects:
            continue
        every, none = row.detected_by[-1] / row.objects, row.detected_by[0] / row.objects
        rows.append(
            [
                row.name,
                row.objects,
                100 * every,
                100 * (1 - every - none),
                100 * none,
                row.box_spread,
                row.score_spread,
            ]
        )
    parts = [
        prose(text),
        _bars(report.all_objects.detected_by),
        table(columns, rows, "Objects that all, some or none of the groups detect."),
    ]
    if report.disputed:
        names = [(f"rgb{palette(group)}", f"group {group}") for group in range(num_groups)]
        legend = swatches([("#fff", "object"), *names])
        images = [_disputed_image(image) for image in report.disputed]
        parts += [
            prose(
                "The images with the most objects that some groups detect and others do not. Only "
                "these objects are drawn, with the boxes of the groups that detect them."
            ),
            legend,
            gallery(images),
        ]
    return section("Do the groups agree?", *parts)


def _bars(counts: Sequence[int]) -> Html:
    """Return a bar chart of the number of objects by the number of groups that detect them."""
    left, right, width = 96, 90, 440
    total, most = max(1, sum(counts)), max(1, *counts)
    parts = []
    for index, count in enumerate(counts):
        y = _BAR_HEIGHT * index
        length = (width - left - right) * count / most
        name = "no group" if index == 0 else quantity(index, "group")
        name = f"all {index} groups" if index == len(counts) - 1 else name
        place = f'x="{left}" y="{y + 4}" width="{length:.1f}" height="{_BAR_HEIGHT - 8}" rx="2"'
        parts.append(svg_text(left - 8, y + 17, name, "end"))
        parts.append(Html(f'<rect {place} style="fill:var(--s1)"/>'))
        label = f"{count:,} ({100 * count / total:.0f} %)"
        parts.append(svg_text(left + length + 6, y + 17, label, "start"))
    view = f'viewBox="0 0 {width} {_BAR_HEIGHT * len(counts)}" style="max-width:660px"'
    caption = "Objects by the number of groups that detect them."
    svg = f'<svg {view} role="img" aria-label="{escape(caption)}">\n{join(parts)}\n</svg>'
    return numbered(Html(svg), caption)


def _disputed_image(disputed: DisputedImage) -> CaptionedImage:
    no_points = np.full((*disputed.group_boxes.shape[:2], 2), np.nan)
    drawn = draw_groups(
        disputed.image,
        disputed.object_boxes,
        disputed.group_boxes,
        no_points,
        scale_for(disputed.image),
    )
    return CaptionedImage(drawn, caption=disputed.caption)


def _uncertainty_sections(report: UncertaintyReport | None) -> list[Html]:
    """Return the section with the risk-coverage curves; none without detections."""
    if report is None:
        return []
    coverage = np.linspace(0, 100, len(report.measures[0].curve)).tolist()
    lines = []
    rows: list[list[Cell]] = []
    for measure in report.measures:
        risk = [100 * value for value in measure.curve]
        # With less than a twentieth of the detections, the curve is noise.
        start = len(risk) // 20
        lines.append(Series(measure.name, coverage[start:], risk[start:]))
        rows.append([measure.name, 100 * measure.aurc, 100 * measure.aurc_box, measure.correlation])
    chart = Chart(
        "False positives among the least uncertain detections",
        "detections that are kept, %",
        "false, %",
        lines,
        legend=True,
        caption="Lower is better.",
    )
    columns = [
        Column("uncertainty"),
        Column("AURC, false positives", 2, "min"),
        Column("AURC, 1 - IoU", 2, "min"),
        Column("correlation with 1 - IoU", 3, "max"),
    ]
    text = (
        "Where the groups agree on box and score, a detection should be right. The uncertainty is "
        "1 minus the mean over all groups of score times IoU; their disagreement alone leaves out "
        "how high the score is. Here all "
        f"{report.detections:,} detections of the group that answers with a score of at least "
        f"{report.threshold:.2f} are sorted by their uncertainty; {report.false:,} of them are "
        "false at an IoU of 0.5. AURC is the area under the curve: the mean part of errors among "
        "the detections that are kept. The baseline is 1 - score, which costs nothing."
    )
    caption = "How well each uncertainty predicts errors. AURC in percent; Spearman's correlation."
    return [
        section(
            "Agreement as uncertainty", prose(text), charts([chart]), table(columns, rows, caption)
        )
    ]
