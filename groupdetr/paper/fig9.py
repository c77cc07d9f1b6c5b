"""Fig. 9: AP and cost by the number of groups."""

from __future__ import annotations

from groupdetr.paper import small_scale
from groupdetr.paper.item import Choices, Item, difference, trainings
from groupdetr.paper.plan import GainRow, Plan, Row
from groupdetr.paper.results import Results
from groupdetr.paper.scale import Detector, Scale
from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.comparison import ratio
from groupdetr.report.page import Html, prose, section

# The text of the paper does not give the numbers of groups of the figure, so these are ours.
PAPER_SWEEP = (1, 3, 5, 7, 9, 11, 13, 15)


class Fig9(Item):
    name = "fig9"
    title = "Fig. 9: how many groups"
    shows = "How do AP and the cost of training grow with K, and when is it enough?"
    source = (
        "The paper's AP is that of Conditional DETR with a ResNet-50 after 12 epochs of COCO, as "
        "far as its text has it: with one group and with eleven."
    )

    several_groups = True

    def detectors(self, scale: Scale) -> list[Detector]:
        return [scale.first("conditional-detr")]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        (detector,) = self.detectors(scale)
        numbers = choices.groups or (PAPER_SWEEP if scale.is_paper else small_scale.SWEEP)
        rows = []
        for groups in sorted({1, *numbers}):
            paper = None
            if groups in (1, 11):
                paper = detector.reported(with_groups=groups > 1)
            label = f"K = {groups}"
            members = trainings(detector, groups, choices)
            rows.append(Row(f"k{groups}", label, members, baseline=groups == 1, reported=paper))
        gains = []
        for row in rows[1:]:
            gain = difference(row.reported, rows[0].reported)
            gains.append(GainRow(f"{row.label} over K = 1", "k1", row.key, gain))
        return Plan(rows, gains)

    def texts(self, results: Results) -> list[str]:
        page = self.numbers(results)
        best = max(page.configurations, key=lambda item: item.metric(page.metric).mean)
        return [
            f"In the paper, AP rises with K and is saturated at about eleven groups. Here the "
            f"highest mean is that of {best.label}."
        ]

    def extra_sections(self, results: Results) -> list[Html]:
        page = self.numbers(results)
        items = page.configurations
        numbers = [item.groups for item in items]
        metric = [item.percentages(page.metric) for item in items]
        means = [item.metric(page.metric).mean for item in items]
        low, high = [min(values) for values in metric], [max(values) for values in metric]
        many = page.num_seeds > 1
        first = items[0]
        step = first.step_seconds(page.time_key)
        steps = [ratio(item.step_seconds(page.time_key), step) for item in items]
        memory = [ratio(item.memory, first.memory) for item in items]
        line = Series(page.metric, numbers, means, low if many else (), high if many else ())
        cost = [Series("time", numbers, steps), Series("memory", numbers, memory)]
        band = "Mean of the seeds; the band shows their range." if many else ""
        charts_of_k = [
            Chart(f"{page.metric} by K", "groups", page.metric, [line], band),
            Chart(
                "Cost by K",
                "groups",
                "over K = 1",
                cost,
                f"The {page.time_name} of a step and the peak memory of the process, over those "
                "of one group.",
            ),
        ]
        text = (
            "Every group adds as many queries to the decoder and the loss as the one before it, "
            "but none to backbone and encoder. The charts show what that costs, and what it brings."
        )
        return [section("The number of groups", prose(text), charts(charts_of_k))]
