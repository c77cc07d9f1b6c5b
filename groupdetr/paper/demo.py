"""The demo: Table 2 of the paper for one detector."""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.errors import UsageError
from groupdetr.paper.item import Choices
from groupdetr.paper.plan import Plan
from groupdetr.paper.results import Results
from groupdetr.paper.scale import Detector, Scale
from groupdetr.paper.table2 import Table2
from groupdetr.report.comparison import format_gain, gain
from groupdetr.report.comparison_page import learning_section, pair_headline, result_section
from groupdetr.report.page import Html


class Demo(Table2):
    name = "demo"
    title = "Several groups of queries instead of one"
    shows = "Is a detector with groups better than one without that is trained for as long?"

    most_models = 1
    several_groups = False

    def detectors(self, scale: Scale) -> list[Detector]:
        return [scale.first("conditional-detr")]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        (detector,) = self.detectors(scale)
        if max(choices.groups, default=detector.groups) < 2:
            raise UsageError(
                "the demo compares one group with several groups", remedy="--groups 2 or more"
            )
        return super().plan(scale, choices)

    def command(self) -> str:
        return "groupdetr demo"

    def heading(self, results: Results) -> str:
        page = self.numbers(results)
        base, longer, grouped = page.configurations
        equal_epochs = format_gain(gain(base, grouped, page.metric).mean)
        equal_time = format_gain(gain(longer, grouped, page.metric).mean)
        return (
            f"{grouped.groups} groups of queries instead of one: {equal_epochs} {page.metric} at "
            f"equal epochs, {equal_time} at equal time"
        )

    def lead(self, results: Results) -> str:
        page = self.numbers(results)
        base, longer, grouped = page.configurations
        seeds = f", on average over {page.num_seeds} seeds" if page.num_seeds > 1 else ""
        return (
            "The same small detector was trained with one group of object queries and with "
            f"{grouped.groups}. Seed, images, their order and all settings are the same, and so is "
            f"the network that is used after training. After {base.epochs:g} epochs the first "
            f"reaches {base.metric(page.metric).mean:.1f} {page.metric}, the second "
            f"{grouped.metric(page.metric).mean:.1f}{seeds}. Trained for {longer.epochs:g} epochs, "
            f"which take the time of {grouped.groups} groups, the first reaches "
            f"{longer.metric(page.metric).mean:.1f}."
        )

    def body(self, results: Results, images: Sequence[Html]) -> list[Html]:
        numbers = results.page(self.source)
        base, _, grouped = numbers.configurations
        return [
            pair_headline(numbers, base, grouped),
            *self.extra_sections(results),
            result_section(numbers, "Results", *self.texts(results)),
            learning_section(numbers),
            *images,
        ]
