"""What a table or a figure of the paper is here: trainings, results, and a page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from groupdetr.engine.accelerator import environment
from groupdetr.engine.run_folder import write_text
from groupdetr.paper.plan import EqualTimeRow, GainRow, Plan, Row
from groupdetr.paper.results import Results, configuration_of, markdown_table
from groupdetr.paper.scale import Detector, Scale, protocol_of
from groupdetr.paper.trainings import Training
from groupdetr.registry import experiment
from groupdetr.report.comparison_page import (
    ComparisonPage,
    headline,
    learning_section,
    result_section,
)
from groupdetr.report.page import Html, facts, page, section
from groupdetr.report.run_summary import format_versions
from groupdetr.tasks.detection3d.comparison import ERROR_METRICS
from groupdetr.tasks.registry import task_class

Equal = Literal["epochs", "time"]


@dataclass(frozen=True)
class Choices:
    """What a user has chosen for an item, besides its detectors, data and epochs."""

    seeds: range
    groups: tuple[int, ...] = ()  # numbers of groups; (): those of the item
    equal: Equal | None = None  # None: that of the item
    epochs: tuple[float, ...] = ()  # lengths of the trainings; (): those of the item


class Item(ABC):
    """A table or a figure of the paper."""

    name: ClassVar[str]  # as `groupdetr paper` takes it
    title: ClassVar[str]  # as the paper calls it, and its subject
    shows: ClassVar[str]  # the question that it answers, for lists
    source: ClassVar[str] = ""  # on what the paper's figures were measured
    equal: ClassVar[Equal] = "epochs"  # what trainings that are compared have in common
    most_models: ClassVar[int | None] = 1  # that --models may name; None: any number
    several_groups: ClassVar[bool] = False  # True: --groups may have several numbers
    own_seconds: ClassVar[float] = 0.0  # CPU time of what it measures without any training
    several_lengths: ClassVar[bool] = False  # True: --epochs may have several numbers

    @abstractmethod
    def detectors(self, scale: Scale) -> list[Detector]:
        """Return the detectors of the item."""

    @abstractmethod
    def plan(self, scale: Scale, choices: Choices) -> Plan:
        """Return the trainings of the item, and the gains that it reports."""

    def measure(self, _scale: Scale, _choices: Choices, _rows: Sequence[Row]) -> dict[str, object]:
        """Return what the item measures besides the trainings, as values of JSON."""
        return {}

    def image_sections(self, _scale: Scale, _rows: Sequence[Row]) -> list[Html]:
        """Return sections with images, which results.json does not hold."""
        return []

    def extra_sections(self, _results: Results) -> list[Html]:
        """Return further sections that are drawn from results.json."""
        return []

    def lead(self, results: Results) -> str:
        """Return the first paragraph of the page."""
        return f"{self.shows} {self.scale_sentence(results)}"

    def scale_sentence(self, results: Results) -> str:
        """Return how the numbers of the page were measured, in a sentence."""
        seeds = max((len(item.runs) for item in results.configurations), default=0)
        text = f"Measured {results.scale}"
        if seeds:
            text += f", with {seeds} {'seed' if seeds == 1 else 'seeds'}"
        return text + "."

    def collect(self, scale: Scale, choices: Choices) -> Results:
        """Return the results. All trainings are done."""
        plan = self.plan(scale, choices)
        rows = plan.resolved(scale.store)
        detectors = self.detectors(scale)
        metrics = list(detectors[0].metrics)
        seeds = ", ".join(str(seed) for seed in choices.seeds)
        return Results(
            item=self.name,
            scale=scale.description,
            metric=metrics[0],
            metrics=metrics,
            configurations=[configuration_of(row, scale.store) for row in rows],
            gains=plan.gains,
            protocol={**protocol_of(detectors), "Seeds": seeds},
            environment=environment(),
            extra=self.measure(scale, choices, rows),
            errors=error_metrics(detectors[0]),
        )

    def draw(self, results: Results, folder: Path, images: Sequence[Html] = ()) -> None:
        """Write report.html and table.md."""
        write_text(folder / "report.html", self.document(results, images))
        write_text(folder / "table.md", self.table(results))

    def document(self, results: Results, images: Sequence[Html] = ()) -> str:
        """Return the page."""
        body = self.body(results, images)
        systems = (results.environment, *results.other_environments)
        machines = [f"{system['cores']} cores, {system['system']}" for system in systems]
        details = {
            **results.protocol,
            "Machine": "; ".join(dict.fromkeys(machines)),
            "Versions": "; ".join(dict.fromkeys(map(format_versions, systems))),
            "Command": "; ".join(dict.fromkeys(system["command"] for system in systems)),
        }
        body.append(section("How this page was made", facts(details)))
        return page(self.command(), self.heading(results), self.lead(results), body)

    def command(self) -> str:
        """Return the command that makes the page."""
        return f"groupdetr paper {self.name}"

    def heading(self, _results: Results) -> str:
        """Return the title of the page."""
        return self.title

    def body(self, results: Results, images: Sequence[Html]) -> list[Html]:
        """Return the sections of the page."""
        numbers = results.page(self.source)
        return [
            headline(numbers),
            result_section(numbers, "Results", *self.texts(results)),
            *self.extra_sections(results),
            learning_section(numbers),
            *images,
        ]

    def texts(self, _results: Results) -> list[str]:
        """Return paragraphs in front of the gains."""
        return []

    def table(self, results: Results) -> str:
        """Return table.md."""
        return markdown_table(self.numbers(results))

    def numbers(self, results: Results) -> ComparisonPage:
        return results.page(self.source)


def error_metrics(detector: Detector) -> Sequence[str]:
    """Return the metrics of a detector of which lower is better: the errors of 3D boxes."""
    task = task_class(experiment(detector.model).task)
    return ERROR_METRICS if task.input_kind == "scenes" else ()


@dataclass(frozen=True)
class Pair:
    """A detector without and with groups, and, at equal time, its longer baseline."""

    rows: Sequence[Row | EqualTimeRow]
    gains: Sequence[GainRow]


def pair(
    detector: Detector,
    choices: Choices,
    equal: Equal,
    named: bool = True,
    epochs: float | None = None,
    reported_longer: float | None = None,
    has_paper: bool = True,
) -> Pair:
    """Return the rows and gains of a detector without and with groups.

    ``named`` is True if the labels name the detector, because a page has several, and ``epochs`` is
    given if it has several lengths. ``has_paper`` is False if the paper has no such trainings.
    """
    prefix = f"{detector.label}, " if named else ""
    key = detector.key if epochs is None else f"{detector.key}-{epochs:g}e"
    length = "" if epochs is None else f", {epochs:g} epochs"
    base_paper = detector.reported(False) if has_paper else None
    grouped_paper = detector.reported(True) if has_paper else None
    base = Row(
        f"{key}-k1",
        f"{prefix}K = 1{length}",
        trainings(detector, 1, choices, epochs),
        baseline=True,
        family=key,
        reported=base_paper,
    )
    rows: list[Row | EqualTimeRow] = [base]
    gains = []
    numbers = [groups for groups in choices.groups or (detector.groups,) if groups > 1]
    for groups in numbers:
        grouped = Row(
            f"{key}-k{groups}",
            f"{prefix}K = {groups}{length}",
            trainings(detector, groups, choices, epochs),
            family=key,
            reported=grouped_paper,
        )
        label = f"{prefix}K = {groups}{length}: gain at equal epochs"
        paper_gain = difference(grouped_paper, base_paper)
        gains.append(GainRow(label, base.key, grouped.key, paper_gain))
        if equal == "time":
            longer = EqualTimeRow(
                f"{base.key}-time-of-k{groups}",
                f"{prefix}K = 1, longer{' than' + length[1:] if length else ''}"
                + (f" (time of {groups})" if len(numbers) > 1 else ""),
                base,
                grouped,
                reported_longer,
            )
            rows.append(longer)
            label = f"{prefix}K = {groups}{length}: gain at equal time"
            paper_gain = difference(grouped_paper, reported_longer)
            gains.append(GainRow(label, longer.key, grouped.key, paper_gain))
        rows.append(grouped)
    return Pair(rows, gains)


def trainings(
    detector: Detector, groups: int, choices: Choices, epochs: float | None = None
) -> tuple[Training, ...]:
    """Return the trainings of a detector with K groups, one for each seed."""
    return tuple(detector.training(groups, seed, epochs=epochs) for seed in choices.seeds)


def difference(better: float | None, over: float | None) -> float | None:
    """Return a gain of the paper; None if it has not both figures."""
    return None if better is None or over is None else round(better - over, 2)


def plan_of(pairs: Sequence[Pair]) -> Plan:
    """Return the plan of several pairs."""
    rows: list[Row | EqualTimeRow] = []
    gains: list[GainRow] = []
    for item in pairs:
        rows += item.rows
        gains += item.gains
    return Plan(rows, gains)
