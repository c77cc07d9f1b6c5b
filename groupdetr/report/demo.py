"""The page of ``groupdetr demo``: the same detector trained with one group and with K, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.report.chart import Chart, charts
from groupdetr.report.comparison import (
    Arm,
    RunSummary,
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
from groupdetr.report.explanation import what_groups_are
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
class Subject:
    """What the detectors of a page look at, and how they are judged."""

    seen: str  # what they were trained on
    figures: Sequence[str]  # shares, the deciding one first; their table has all that a run has
    caption: str  # of that table
    errors: Sequence[str] = ()  # that stand beside them: the less the better


@dataclass(frozen=True)
class DemoResults:
    """All that the page shows. Runs in any order: several numbers of groups, several seeds of each."""

    runs: Sequence[RunSummary]
    subject: Subject
    longer: Sequence[
        RunSummary
    ] = ()  # the baseline again, for as many epochs as take the time of the best
    shown: Sequence[Html] = ()  # sections with what was found
    about: Mapping[str, object] = field(
        default_factory=dict
    )  # seed, data, versions, threads, command

    @property
    def score(self) -> str:
        """The figure that decides."""
        return self.subject.figures[0]


def write_demo_report(path: Path | str, demo: DemoResults) -> None:
    """One self-contained HTML file. The smallest K is the baseline; the best of the others is set against it."""
    base, *others = arms(sorted(demo.runs, key=lambda run: run.groups))
    if not others:
        raise ValueError(
            "the report compares numbers of groups: it needs runs with two of them at least"
        )
    best = max(others, key=lambda arm: arm.metric(demo.score).mean)
    longer = arms(demo.longer)
    shown = [base, *longer, *others]
    body = [
        _headline(base, best, longer, demo.score),
        what_groups_are(),
        _learning(shown, best, longer, demo.subject),
        _precision(shown, base, best, demo.subject),
        *demo.shown,
        section("How this page was made", facts({**protocol(demo.runs), **demo.about})),
    ]
    document = page(
        "groupdetr demo", _title(base, best, demo.score), _lead(base, best, demo.subject), body
    )
    Path(path).write_text(document, encoding="utf-8")


def _title(base: Arm, best: Arm, score: str) -> str:
    return f"{best.groups} groups of queries instead of {base.groups}: {signed(gain(base, best, score).mean)} {score}"


def _lead(base: Arm, best: Arm, subject: Subject) -> str:
    epochs, seeds, score = max(run.epochs for run in base.runs), len(base.runs), subject.figures[0]
    return (
        f"The same small detector, trained from scratch on {subject.seen} with K = {base.groups} and with "
        f"K = {best.groups} groups of object queries. Seed, data, their order, epochs and schedule are "
        f"the same, and so is the network that answers in the end. After {epochs:g} epochs the first reaches "
        f"{base.metric(score).mean:.1f} {score}, the second {best.metric(score).mean:.1f}"
        + (f", on average over {seeds} seeds." if seeds > 1 else ".")
    )


def _headline(base: Arm, best: Arm, longer: Sequence[Arm], score: str) -> Html:
    equal_epochs, equal_time = gain(base, best, score), [gain(arm, best, score) for arm in longer]
    return tiles(
        [
            _points(f"Trained with {_groups(base)}", base, score),
            _points(f"Trained with {_groups(best)}", best, score),
            Tile(
                "Gain at equal epochs",
                signed(equal_epochs.mean),
                score,
                over_seeds(equal_epochs),
                strong=True,
            ),
            *(
                Tile("Gain at equal wall time", signed(g.mean), score, over_seeds(g))
                for g in equal_time
            ),
            price("Training time", base.seconds, best.seconds, duration),
            price("Peak memory", base.memory, best.memory, lambda mb: f"{mb:,.0f} MB"),
        ]
    )


def _groups(arm: Arm) -> str:
    return f"{arm.groups} group{'s' * (arm.groups != 1)}"


def _points(label: str, arm: Arm, score: str) -> Tile:
    reached = arm.metric(score)
    return Tile(label, f"{reached.mean:.1f}", score, over_seeds(reached))


def _learning(all_arms: Sequence[Arm], best: Arm, longer: Sequence[Arm], subject: Subject) -> Html:
    score, second, *_ = subject.figures
    unit, size = ("min", 60) if max(arm.seconds for arm in all_arms) > 300 else ("s", 1)
    band = "Mean of the seeds; the band spans them." if len(best.runs) > 1 else ""
    drawn = [
        Chart(f"{score} by epoch", "epoch", score, curves(all_arms, epoch, percent(score)), band),
        Chart(
            *(f"{score} by wall time", f"training time ({unit})", score),
            curves(all_arms, lambda row: row["seconds"] / size, percent(score)),
        ),
        Chart(f"{second} by epoch", "epoch", second, curves(all_arms, epoch, percent(second))),
        Chart(
            "Training loss",
            "epoch",
            "loss",
            curves(all_arms, epoch, value("loss")),
            "A mean over groups.",
        ),
        instability(all_arms),
    ]
    return section(
        "Learning",
        prose(_equal_time(best, longer, subject)),
        charts([chart for chart in drawn if not chart.empty]),
    )


def _equal_time(best: Arm, longer: Sequence[Arm], subject: Subject) -> str:
    """The question of the paper's Table 2."""
    score = subject.figures[0]
    words = "Groups make every step dearer, so equal epochs are not the whole story. "
    for arm in longer:
        words += (
            "What if the time is the same? "
            f"Trained for {arm.runs[0].epochs:g} epochs, which take {duration(arm.seconds)}, "
            f"{_groups(arm)} reaches {arm.metric(score).mean:.1f} {score}; {_groups(best)} had reached "
            f"{best.metric(score).mean:.1f} in {duration(best.seconds)}. "
        )
    return words + (
        "On COCO the paper measured a step to be 1.2 times dearer with 11 groups, since backbone and encoder, which "
        "groups share, are most of the work there; in a network as small as this, queries are more of it."
    )


def _precision(all_arms: Sequence[Arm], base: Arm, best: Arm, subject: Subject) -> Html:
    points, errors = (
        [n for n in names if n in base.runs[0].metrics]
        for names in (subject.figures, subject.errors)
    )
    figures = [Column(name.replace("_", " "), 1, "max") for name in points] + [
        Column(n, 2, "min") for n in errors
    ]
    head = [Column("groups"), *figures, Column("seconds", 0), Column("peak MB", 0)]
    shown = [table(head, [_row(arm, points, errors) for arm in all_arms], subject.caption)]
    if len(base.runs) > 1:
        shown.append(_by_seed(all_arms, base, best, subject.figures[0]))
    return section("How well they find", *shown)


def _row(arm: Arm, points: Sequence[str], errors: Sequence[str]) -> list[Cell]:
    shares, others = (
        [arm.metric(name).mean for name in points],
        [arm.metric(name).mean / 100 for name in errors],
    )
    return [arm.name, *shares, *others, arm.seconds, arm.memory]


def _by_seed(all_arms: Sequence[Arm], base: Arm, best: Arm, score: str) -> Html:
    """Each seed on its own line: whether the gain is larger than chance."""
    head = [Column("seed"), *(Column(arm.name, 1) for arm in all_arms), Column("gain", 1)]
    rows: list[list[Cell]] = []
    for seed, reached in by_seed(all_arms, score).items():
        rows.append([str(seed), *reached.values(), signed(reached[best.name] - reached[base.name])])
    return table(
        head, rows, f"{score} of every seed, and the gain of {best.name} over {base.name}."
    )
