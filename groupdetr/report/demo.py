"""The page of ``groupdetr demo``: the same detector trained with one group and with K, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.evaluation.coco import BOX_FIGURES, FIGURES
from groupdetr.report.chart import Chart, charts
from groupdetr.report.comparison import (
    Arm,
    RunSummary,
    Spread,
    ap_by_seed,
    arms,
    curves,
    duration,
    epoch,
    gain,
    instability,
    over_seeds,
    percent,
    price,
    protocol,
    signed,
    value,
)
from groupdetr.report.explanation import what_groups_are
from groupdetr.report.page import Cell, Column, Html, Tile, facts, page, prose, section, table, tiles
from groupdetr.report.panels import DetectionPanel, GroupPanel, detection_strips, group_gallery

_SAID = {  # what is drawn of a query, by what AP is of
    "box": "the box and the reference point",
    "mask": "the box around the mask, and its middle,",
}


@dataclass(frozen=True)
class DemoResults:
    """All that the page shows. Runs in any order: several numbers of groups, several seeds of each."""

    runs: Sequence[RunSummary]
    class_names: Sequence[str]
    panels: Sequence[DetectionPanel] = ()  # ``found`` by "K = 1", "K = 8": RunSummary.name
    group_panels: Sequence[GroupPanel] = ()  # of the largest K; three stand in a row
    longer: Sequence[RunSummary] = ()  # the baseline again, for as many epochs as take the time of the best
    about: Mapping[str, object] = field(default_factory=dict)  # seed, data, versions, threads, command
    kind: str = "box"  # whose AP it is: box or mask


def write_demo_report(path: Path | str, demo: DemoResults) -> None:
    """One self-contained HTML file. The smallest K is the baseline; the best of the others is set against it."""
    base, *others = arms(sorted(demo.runs, key=lambda run: run.groups))
    if not others:
        raise ValueError("the report compares numbers of groups: it needs runs with two of them at least")
    best = max(others, key=lambda arm: arm.metric("AP").mean)
    longer = arms(demo.longer)
    shown = [base, *longer, *others]
    body = [
        _headline(base, best, longer),
        what_groups_are(),
        _learning(shown, best, longer),
        _precision(shown, base, best, demo.kind),
        *_pictures(demo, (base.name, best.name)),
        section("How this page was made", facts({**protocol(demo.runs), **demo.about})),
    ]
    document = page("groupdetr demo", _title(base, best), _lead(base, best), body)
    Path(path).write_text(document, encoding="utf-8")


def _title(base: Arm, best: Arm) -> str:
    return f"{best.groups} groups of queries instead of {base.groups}: {signed(gain(base, best).mean)} AP"


def _lead(base: Arm, best: Arm) -> str:
    epochs, seeds = max(run.epochs for run in base.runs), len(base.runs)
    return (
        f"The same small detector, trained from scratch on drawn shapes with K = {base.groups} and with "
        f"K = {best.groups} groups of object queries. Seed, pictures, their order, epochs and schedule are "
        f"the same, and so is the network that answers in the end. After {epochs} epochs the first reaches "
        f"{base.metric('AP').mean:.1f} AP, the second {best.metric('AP').mean:.1f}"
        + (f", on average over {seeds} seeds." if seeds > 1 else ".")
    )


def _headline(base: Arm, best: Arm, longer: Sequence[Arm]) -> Html:
    equal_epochs = gain(base, best)
    equal_time = [Tile("Gain at equal wall time", signed(g.mean), "AP", over_seeds(g)) for g in _gains(longer, best)]
    return tiles(
        [
            Tile(f"Trained with {_groups(base)}", *_points(base.metric("AP"))),
            Tile(f"Trained with {_groups(best)}", *_points(best.metric("AP"))),
            Tile("Gain at equal epochs", signed(equal_epochs.mean), "AP", over_seeds(equal_epochs), strong=True),
            *equal_time,
            price("Training time", base.seconds, best.seconds, duration),
            price("Peak memory", base.memory, best.memory, lambda mb: f"{mb:,.0f} MB"),
        ]
    )


def _gains(longer: Sequence[Arm], best: Arm) -> list[Spread]:
    return [gain(arm, best) for arm in longer]


def _groups(arm: Arm) -> str:
    return f"{arm.groups} group{'s' * (arm.groups != 1)}"


def _points(ap: Spread) -> tuple[str, str, str]:
    return f"{ap.mean:.1f}", "AP", over_seeds(ap)


def _learning(all_arms: Sequence[Arm], best: Arm, longer: Sequence[Arm]) -> Html:
    unit, size = ("min", 60) if max(arm.seconds for arm in all_arms) > 300 else ("s", 1)
    band = "Mean of the seeds; the band spans them." if len(best.runs) > 1 else ""
    drawn = [
        Chart("AP by epoch", "epoch", "AP", curves(all_arms, epoch, percent("AP")), band),
        Chart(
            *("AP by wall time", f"training time ({unit})", "AP"),
            curves(all_arms, lambda row: row["seconds"] / size, percent("AP")),
        ),
        Chart("AP50 by epoch", "epoch", "AP50", curves(all_arms, epoch, percent("AP50"))),
        Chart("Training loss", "epoch", "loss", curves(all_arms, epoch, value("loss")), "A mean over groups."),
        instability(all_arms),
    ]
    return section("Learning", prose(_equal_time(best, longer)), charts([chart for chart in drawn if not chart.empty]))


def _equal_time(best: Arm, longer: Sequence[Arm]) -> str:
    """The question of the paper's Table 2."""
    words = "Groups make every step dearer, so equal epochs are not the whole story. "
    for arm in longer:
        words += (
            "What if the time is the same? "
            f"Trained for {arm.runs[0].epochs} epochs, which take {duration(arm.seconds)}, "
            f"{_groups(arm)} reaches {arm.metric('AP').mean:.1f} AP; {_groups(best)} had reached "
            f"{best.metric('AP').mean:.1f} in {duration(best.seconds)}. "
        )
    return words + (
        "On COCO the paper measured a step to be 1.2 times dearer with 11 groups, since backbone and encoder, which "
        "groups share, are most of the work there; in a network as small as this, queries are."
    )


def _precision(all_arms: Sequence[Arm], base: Arm, best: Arm, kind: str) -> Html:
    names = [*FIGURES[:6], *(name for name in BOX_FIGURES if name in base.runs[0].metrics)]
    figures = [Column(name.replace("_", " "), 1, "max") for name in names]
    head = [Column("groups"), *figures, Column("seconds", 0), Column("peak MB", 0)]
    rows: list[list[Cell]] = [
        [arm.name, *(arm.metric(name).mean for name in names), arm.seconds, arm.memory] for arm in all_arms
    ]
    shown = [table(head, rows, f"COCO {kind} AP on the validation pictures, in points, after the last epoch.")]
    if len(base.runs) > 1:
        shown.append(_by_seed(all_arms, base, best))
    return section("Average precision", *shown)


def _by_seed(all_arms: Sequence[Arm], base: Arm, best: Arm) -> Html:
    """Each seed on its own line: whether the gain is larger than chance."""
    head = [Column("seed"), *(Column(arm.name, 1) for arm in all_arms), Column("gain", 1)]
    rows: list[list[Cell]] = []
    for seed, ap in ap_by_seed(all_arms).items():
        rows.append([str(seed), *ap.values(), signed(ap[best.name] - ap[base.name])])
    return table(head, rows, f"AP of every seed, and the gain of {best.name} over {base.name}.")


def _pictures(demo: DemoResults, names: Sequence[str]) -> Iterator[Html]:
    if demo.panels:
        panels = [panel.only(names) for panel in demo.panels]
        words = (
            "Pictures that no run was trained on. Of each detector as many detections are drawn as the picture has "
            "objects, the surest first: a common score threshold would favour whichever is the more confident. An "
            f"object counts as found when a detection of its class covers it with a {demo.kind} IoU of 0.5."
        )
        yield section("What they find", prose(words), detection_strips(panels, demo.class_names))
    if demo.group_panels:
        words = (
            f"For some objects (white), {_SAID[demo.kind]} of the query that each group assigned to it. As in the "
            "paper's Fig. 3, the groups look at the same thing from different places, like augmentations of one query."
        )
        yield section("One object, a query of every group", prose(words), group_gallery(demo.group_panels))
