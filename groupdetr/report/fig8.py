"""The page of the paper's Fig. 8: neither denoising nor groups, one of them, and both, at equal epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from groupdetr.report.chart import Chart, charts
from groupdetr.report.comparison import (
    Arm,
    RunSummary,
    Spread,
    arms,
    by_seed,
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
from groupdetr.report.dots import Row, dot_chart
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
class Fig8Results:
    """All that the page shows. ``runs``, by name: neither first, then denoising, groups, and both; any seeds."""

    runs: Sequence[RunSummary]
    reported: Mapping[str, float]  # name -> the paper's AP
    about: Mapping[str, object] = field(default_factory=dict)  # model, data, versions, command


@dataclass(frozen=True)
class _Figure:
    """The four, and the differences that the figure is about."""

    none: Arm
    denoising: Arm
    groups: Arm
    both: Arm

    @property
    def arms(self) -> list[Arm]:
        return [self.none, self.denoising, self.groups, self.both]

    @property
    def over_none(self) -> list[Spread]:
        """What denoising brings, what groups bring, and what both bring."""
        return [gain(self.none, arm) for arm in self.arms[1:]]

    @property
    def on_top(self) -> Spread:
        """What groups bring where there is denoising."""
        return gain(self.denoising, self.both)

    @property
    def synergy(self) -> Spread:
        """By how much both bring more than the two gains add up to, seed by seed."""
        rows = (list(ap.values()) for ap in by_seed(self.arms).values())
        return Spread.of(
            [both - denoising - groups + none for none, denoising, groups, both in rows]
        )


def write_fig8_report(path: Path | str, results: Fig8Results) -> None:
    """One self-contained HTML file."""
    found = arms(results.runs)
    if len(found) != 4:
        raise ValueError(
            f"Fig. 8 compares four trainings, here are {len(found)}: {[arm.name for arm in found]}"
        )
    figure = _Figure(*found)
    paper = [results.reported[arm.name] for arm in figure.arms]
    body = [
        _headline(figure, paper),
        _comparison(figure, paper),
        _learning(figure),
        section("How this page was made", facts({**protocol(results.runs), **results.about})),
    ]
    document = page("groupdetr demo --figure 8", _title(figure), _lead(figure), body)
    Path(path).write_text(document, encoding="utf-8")


def _title(figure: _Figure) -> str:
    alone, on_top = gain(figure.none, figure.groups), figure.on_top
    outcome = {
        (True, True): "Groups help without denoising and with it",
        (True, False): "Groups help without denoising, not clearly with it",
        (False, True): "Groups do not clearly help without denoising, but do with it",
        (False, False): "Groups do not clearly help, without denoising or with it",
    }[clearly(alone), clearly(on_top)]
    return f"{outcome}: {signed(alone.mean)} and {signed(on_top.mean)} AP"


def clearly(difference: Spread) -> bool:
    """Whether it is a gain, and a larger one than the deviation over the seeds where there are several."""
    return difference.mean > (0 if math.isnan(difference.deviation) else difference.deviation)


def _lead(figure: _Figure) -> str:
    epochs, seeds = max(run.epochs for run in figure.none.runs), len(figure.none.runs)
    return (
        "The same small detector, trained from scratch on drawn shapes in four ways: as it is, with denoising queries, "
        f"with K = {figure.groups.groups} groups of object queries, and with both. Seed, pictures, their order, epochs "
        "and schedule are the same; in the end one group answers, without denoising. "
        f"After {epochs:g} epochs they reach {_aps(figure)} AP"
        + (f", on average over {seeds} seeds." if seeds > 1 else ".")
    )


def _aps(figure: _Figure) -> str:
    *first, last = (f"{arm.metric('AP').mean:.1f}".replace("nan", "–") for arm in figure.arms)
    return f"{', '.join(first)} and {last}"


def _headline(figure: _Figure, paper: Sequence[float]) -> Html:
    none, both = figure.none, figure.both
    names = ("Denoising alone", "Groups alone", "Both")
    gains = [
        _gain(name, spread, ap - paper[0])
        for name, spread, ap in zip(names, figure.over_none, paper[1:])
    ]
    return tiles(
        [
            *gains,
            replace(
                _gain("Groups on top of denoising", figure.on_top, paper[3] - paper[1]), strong=True
            ),
            price("Training time of both", none.seconds, both.seconds, duration),
            price("Peak memory of both", none.memory, both.memory, lambda mb: f"{mb:,.0f} MB"),
        ]
    )


def _gain(name: str, here: Spread, paper: float) -> Tile:
    notes = (over_seeds(here), f"{signed(paper)} in the paper")
    return Tile(name, signed(here.mean), "AP", "; ".join(note for note in notes if note))


def _comparison(figure: _Figure, paper: Sequence[float]) -> Html:
    several = len(figure.none.runs) > 1
    rows = [Row(arm.name, [100 * run.metrics["AP"] for run in arm.runs]) for arm in figure.arms]
    caption = "A dot for each seed, a bar at their mean." if several else ""
    shown = [
        prose(" ".join(_findings(figure, paper))),
        dot_chart("AP after the last epoch", "AP", rows, caption),
        _table(figure, paper),
    ]
    return section("Denoising, groups, both", *shown, *([_by_seed(figure)] if several else []))


def _findings(figure: _Figure, paper: Sequence[float]) -> Iterator[str]:
    """What the paper found and what came out here, sentence by sentence."""
    ours = [f"{signed(gained.mean)} {gained}".strip() for gained in figure.over_none]
    theirs = [signed(ap - paper[0]) for ap in paper[1:]]
    bring = "denoising brings {} AP, groups bring {} and both {}."
    yield f"In the paper (DAB-DETR with ResNet-50, 12 epochs of COCO) {bring.format(*theirs)}"
    yield f"Here {bring.format(*ours)}"
    yield _told(
        gain(figure.denoising, figure.groups),
        "As in the paper, groups bring more than denoising.",
        "Other than in the paper, denoising brings more than groups.",
        "Which of the two brings more cannot be told here; in the paper it is groups.",
    )
    yield _told(
        figure.on_top,
        "As in the paper, groups still help where there is denoising.",
        "Other than in the paper, groups do harm where there is denoising.",
        "Other than in the paper, groups do not clearly help where there is denoising.",
    )
    yield _told(
        figure.synergy,
        "Both bring more than the two gains add up to; in the paper less, for a part of what they bring is the same.",
        "As in the paper, both bring less than the two gains add up to: a part of what they bring is the same.",
        "The two gains add up, as far as can be told; in the paper a part of what they bring is the same.",
    )
    yield (
        "A difference is called clear when its mean over the seeds exceeds its standard deviation."
        if len(figure.none.runs) > 1
        else "One seed does not tell how much of this is chance."
    )


def _told(difference: Spread, more: str, less: str, unclear: str) -> str:
    if clearly(difference):
        return more
    return less if clearly(replace(difference, mean=-difference.mean)) else unclear


def _table(figure: _Figure, paper: Sequence[float]) -> Html:
    head = [
        *(
            Column("training"),
            Column("K", 0),
            Column("AP", 1, "max"),
            Column("±", 1),
            Column("AP50", 1, "max"),
        ),
        *(
            Column("gain", 1),
            Column("seconds", 0),
            Column("peak MB", 0),
            Column("paper's AP", 1),
            Column("its gain", 1),
        ),
    ]
    rows = [_figures(figure.none, arm, (ap, ap - paper[0])) for arm, ap in zip(figure.arms, paper)]
    words = (
        "COCO box AP on the validation pictures, in points, after the last epoch; ± is the standard deviation over the "
        "seeds, a gain is over none. The paper's AP is of other pictures and a larger network: compare its gains."
    )
    return table(head, rows, words)


def _figures(none: Arm, arm: Arm, paper: tuple[float, float]) -> list[Cell]:
    ap, first = arm.metric("AP"), arm is none
    here: list[Cell] = [arm.name, arm.groups, ap.mean, ap.deviation, arm.metric("AP50").mean]
    gains = [None if first else signed(gained) for gained in (gain(none, arm).mean, paper[1])]
    return [*here, gains[0], arm.seconds, arm.memory, paper[0], gains[1]]


def _by_seed(figure: _Figure) -> Html:
    head = [Column("seed"), *(Column(arm.name, 1) for arm in figure.arms)]
    rows: list[list[Cell]] = [
        [str(seed), *ap.values()] for seed, ap in by_seed(figure.arms).items()
    ]
    return table(head, rows, "AP of every seed.")


def _learning(figure: _Figure) -> Html:
    band = "Mean of the seeds; the band spans them." if len(figure.none.runs) > 1 else ""
    loss = "A mean over groups; with denoising, its terms are part of it."
    drawn = [
        Chart("AP by epoch", "epoch", "AP", curves(figure.arms, epoch, percent("AP")), band),
        Chart("Training loss", "epoch", "loss", curves(figure.arms, epoch, value("loss")), loss),
        instability(figure.arms),
    ]
    return section("Learning", charts([chart for chart in drawn if not chart.empty]))
