"""The page of the paper's Fig. 8: trainings with denoising, groups, both or neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.engine.run_folder import write_text
from groupdetr.report.chart import Chart, charts
from groupdetr.report.comparison import (
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
from groupdetr.report.dots import DotRow, dot_chart
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
    """Everything that the page shows.

    The names of the runs must first appear in the order: neither, denoising, groups, both. Each
    name may have several seeds.
    """

    runs: Sequence[RunSummary]
    reported: Mapping[str, float]  # name -> AP in the paper
    details: Mapping[str, object] = field(default_factory=dict)  # model, data, versions, command


@dataclass(frozen=True)
class _Figure:
    """The four configurations and the differences that the figure is about."""

    none: RunsOverSeeds
    denoising: RunsOverSeeds
    groups: RunsOverSeeds
    both: RunsOverSeeds

    @property
    def configurations(self) -> list[RunsOverSeeds]:
        return [self.none, self.denoising, self.groups, self.both]

    @property
    def num_seeds(self) -> int:
        return len(self.none.runs)

    @property
    def gains_over_none(self) -> list[MeanStd]:
        """The gains of denoising, of groups, and of both over neither."""
        return [gain(self.none, other) for other in (self.denoising, self.groups, self.both)]

    @property
    def gain_over_denoising(self) -> MeanStd:
        """The gain of groups if denoising is used."""
        return gain(self.denoising, self.both)

    @property
    def synergy(self) -> MeanStd:
        """The gain of both minus the sum of the two gains, seed by seed."""
        values = []
        for ap in metric_by_seed(self.configurations).values():
            none, denoising, groups, both = ap.values()
            values.append(both - denoising - groups + none)
        return MeanStd.from_values(values)


def write_fig8_report(path: Path | str, results: Fig8Results) -> None:
    """Write the page of Fig. 8 as one self-contained HTML file."""
    configurations = collect_seeds(results.runs)
    if len(configurations) != 4:
        names = [configuration.name for configuration in configurations]
        raise ValueError(f"Fig. 8 compares four trainings, not {len(names)}: {names}")
    figure = _Figure(*configurations)
    paper_ap = [results.reported[configuration.name] for configuration in configurations]
    body = [
        _headline(figure, paper_ap),
        _comparison(figure, paper_ap),
        _learning(figure),
        section("How this page was made", facts({**protocol(results.runs), **results.details})),
    ]
    document = page("groupdetr demo --figure 8", _title(figure), _lead(figure), body)
    write_text(Path(path), document)


def _title(figure: _Figure) -> str:
    without = gain(figure.none, figure.groups)
    with_denoising = figure.gain_over_denoising
    if is_clear_gain(without) and is_clear_gain(with_denoising):
        outcome = "Groups help without denoising and with it"
    elif is_clear_gain(without):
        outcome = "Groups help without denoising, not clearly with it"
    elif is_clear_gain(with_denoising):
        outcome = "Groups do not clearly help without denoising, but do with it"
    else:
        outcome = "Groups do not clearly help, without denoising or with it"
    return f"{outcome}: {format_gain(without.mean)} and {format_gain(with_denoising.mean)} AP"


def is_clear_gain(difference: MeanStd) -> bool:
    """True if the mean is positive and larger than the standard deviation over the seeds.

    With a single seed there is no deviation, and the mean only has to be positive.
    """
    threshold = 0 if math.isnan(difference.std) else difference.std
    return difference.mean > threshold


def is_clear_loss(difference: MeanStd) -> bool:
    """True if the mean is negative and its size is larger than the standard deviation."""
    return is_clear_gain(MeanStd(-difference.mean, difference.std))


def _lead(figure: _Figure) -> str:
    epochs = max(run.epochs for run in figure.none.runs)
    setup = (
        "The same small detector was trained from scratch on synthetic images in four ways: as it "
        f"is, with denoising queries, with K = {figure.groups.groups} groups of object queries, "
        "and with both. Seed, images, their order, epochs and schedule are the same. After "
        "training, one group is used, without denoising."
    )
    ap = []
    for configuration in figure.configurations:
        ap.append(f"{configuration.metric('AP').mean:.1f}".replace("nan", "–"))
    outcome = f"After {epochs:g} epochs they reach {', '.join(ap[:-1])} and {ap[-1]} AP"
    average = f", on average over {figure.num_seeds} seeds." if figure.num_seeds > 1 else "."
    return f"{setup} {outcome}{average}"


def _headline(figure: _Figure, paper_ap: Sequence[float]) -> Html:
    none = figure.none
    both = figure.both
    names = ("Denoising alone", "Groups alone", "Both")
    items = []
    for name, measured, paper in zip(names, figure.gains_over_none, paper_ap[1:]):
        items.append(_gain_tile(name, measured, paper - paper_ap[0]))
    paper_gain = paper_ap[3] - paper_ap[1]
    items.append(
        _gain_tile(
            "Groups in addition to denoising", figure.gain_over_denoising, paper_gain, strong=True
        )
    )
    items.append(cost_tile("Training time of both", none.seconds, both.seconds, format_seconds))
    items.append(cost_tile("Peak memory of both", none.memory, both.memory, format_memory))
    return tiles(items)


def _gain_tile(name: str, measured: MeanStd, paper: float, strong: bool = False) -> Tile:
    note = f"{format_gain(paper)} in the paper"
    if format_std(measured):
        note = f"{format_std(measured)}; {note}"
    return Tile(name, format_gain(measured.mean), "AP", note, strong)


def _comparison(figure: _Figure, paper_ap: Sequence[float]) -> Html:
    """Return the section with the conclusions, the dot chart and the tables."""
    rows = []
    for configuration in figure.configurations:
        ap = [100 * run.metrics["AP"] for run in configuration.runs]
        rows.append(DotRow(configuration.name, ap))
    caption = "A dot for each seed, a bar at their mean." if figure.num_seeds > 1 else ""
    parts = [
        prose(" ".join(_conclusions(figure, paper_ap))),
        dot_chart("AP after the last epoch", "AP", rows, caption),
        _table(figure, paper_ap),
    ]
    if figure.num_seeds > 1:
        parts.append(_seed_table(figure))
    return section("Denoising, groups, both", *parts)


def _conclusions(figure: _Figure, paper_ap: Sequence[float]) -> list[str]:
    """Return the results of the paper and of this comparison in sentences."""
    measured = []
    for value in figure.gains_over_none:
        measured.append(f"{format_gain(value.mean)} {value}".strip())
    paper = [format_gain(ap - paper_ap[0]) for ap in paper_ap[1:]]
    gains = "denoising brings {} AP, groups bring {} and both {}."
    sentences = [
        "In the paper (DAB-DETR with ResNet-50, 12 epochs of COCO) " + gains.format(*paper),
        "In this comparison " + gains.format(*measured),
        _choose_sentence(
            gain(figure.denoising, figure.groups),
            gain="As in the paper, groups bring more than denoising.",
            loss="Unlike in the paper, denoising brings more than groups.",
            unclear=(
                "It is not clear which of the two brings more in this comparison; in the paper "
                "groups bring more."
            ),
        ),
        _choose_sentence(
            figure.gain_over_denoising,
            gain="As in the paper, groups still help if denoising is used.",
            loss="Unlike in the paper, groups lower AP if denoising is used.",
            unclear="Unlike in the paper, groups do not clearly help if denoising is used.",
        ),
        _choose_sentence(
            figure.synergy,
            gain=(
                "Both together bring more than the sum of the two gains; in the paper they bring "
                "less, because the two gains overlap."
            ),
            loss=(
                "As in the paper, both together bring less than the sum of the two gains, because "
                "the two gains overlap."
            ),
            unclear=(
                "Both together bring about the sum of the two gains; in the paper they bring less, "
                "because the two gains overlap."
            ),
        ),
    ]
    if figure.num_seeds > 1:
        sentences.append(
            "A difference is called clear if its mean over the seeds is larger than its standard "
            "deviation."
        )
    else:
        sentences.append("One seed does not show how much of these differences is noise.")
    return sentences


def _choose_sentence(difference: MeanStd, gain: str, loss: str, unclear: str) -> str:
    """Return the sentence for a clear gain, for a clear loss, or for neither."""
    if is_clear_gain(difference):
        return gain
    if is_clear_loss(difference):
        return loss
    return unclear


def _table(figure: _Figure, paper_ap: Sequence[float]) -> Html:
    columns = [
        Column("training"),
        Column("K", 0),
        Column("AP", 1, "max"),
        Column("±", 1),
        Column("AP50", 1, "max"),
        Column("gain", 1),
        Column("seconds", 0),
        Column("peak MB", 0),
        Column("paper's AP", 1),
        Column("paper's gain", 1),
    ]
    rows = []
    for configuration, paper in zip(figure.configurations, paper_ap):
        rows.append(_table_row(figure.none, configuration, paper, paper - paper_ap[0]))
    caption = (
        "COCO box AP on the validation images, in percent, after the last epoch; ± is the standard "
        "deviation over the seeds; a gain is the difference to none. The paper measured AP on "
        "other images and with a larger network, so only its gains can be compared."
    )
    return table(columns, rows, caption)


def _table_row(
    none: RunsOverSeeds, configuration: RunsOverSeeds, paper_ap: float, paper_gain: float
) -> list[Cell]:
    ap = configuration.metric("AP")
    measured_gain: str | None = None
    printed_paper_gain: str | None = None
    if configuration is not none:
        measured_gain = format_gain(gain(none, configuration).mean)
        printed_paper_gain = format_gain(paper_gain)
    return [
        configuration.name,
        configuration.groups,
        ap.mean,
        ap.std,
        configuration.metric("AP50").mean,
        measured_gain,
        configuration.seconds,
        configuration.memory,
        paper_ap,
        printed_paper_gain,
    ]


def _seed_table(figure: _Figure) -> Html:
    columns = [Column("seed")]
    columns += [Column(configuration.name, 1) for configuration in figure.configurations]
    rows: list[list[Cell]] = []
    for seed, ap in metric_by_seed(figure.configurations).items():
        rows.append([str(seed), *ap.values()])
    return table(columns, rows, "AP of every seed.")


def _learning(figure: _Figure) -> Html:
    """Return the section with the curves of AP, loss and instability."""
    band = "Mean of the seeds; the band shows their range." if figure.num_seeds > 1 else ""
    loss_caption = "The mean over groups. With denoising it includes the terms of denoising."
    ap_by_epoch = curves(figure.configurations, read_epoch, read_percent("AP"))
    loss_by_epoch = curves(figure.configurations, read_epoch, read_value("loss"))
    candidates = [
        Chart("AP by epoch", "epoch", "AP", ap_by_epoch, band),
        Chart("Training loss", "epoch", "loss", loss_by_epoch, loss_caption),
        instability_chart(figure.configurations),
    ]
    return section("Learning", charts([chart for chart in candidates if not chart.empty]))
