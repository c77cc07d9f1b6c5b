"""Tables 3 and 4, Fig. 1 and Fig. 5: all detectors, after few and after many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from groupdetr.paper import small_scale
from groupdetr.paper.fig8 import Fig8
from groupdetr.paper.item import Choices, Item, pair, plan_of
from groupdetr.paper.plan import Plan
from groupdetr.paper.results import Results
from groupdetr.paper.scale import LONG, SHORT, Detector, Scale
from groupdetr.report.chart import Chart, Series, charts
from groupdetr.report.comparison import Configuration, curves, gain, read_epoch, read_value
from groupdetr.report.page import Cell, Column, Html, prose, section, table

ALL_2D = (
    *("conditional-detr", "conditional-detr-dc5", "dab-detr", "dab-detr-dc5"),
    *("dn-detr", "dn-detr-dc5", "dab-deformable-detr", "dino"),
)
THREE = ("conditional-detr", "dab-detr", "dab-deformable-detr")


class SeveralDetectors(Item):
    """A table with several detectors, each without and with groups."""

    length: ClassVar[int] = SHORT
    most_models = None
    several_groups = True

    def families(self, _scale: Scale) -> tuple[str, ...]:
        return ALL_2D

    def detectors(self, scale: Scale) -> list[Detector]:
        return scale.detectors(self.families(scale), self.length)

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        detectors = self.detectors(scale)
        equal = choices.equal or self.equal
        named = len(detectors) > 1
        return plan_of([pair(detector, choices, equal, named) for detector in detectors])


class Table3(SeveralDetectors):
    name = "table3"
    title = "Table 3: every detector without and with groups, after few epochs"
    shows = "Do groups help every detector when the training is short?"
    source = "The paper's AP is that on COCO after 12 epochs, with a ResNet-50."


class Table4(SeveralDetectors):
    name = "table4"
    title = "Table 4: every detector without and with groups, after many epochs"
    shows = "Do groups still help when the training is long?"
    source = "The paper's AP is that on COCO after 50 epochs, 36 for DINO."
    length = LONG

    def families(self, scale: Scale) -> tuple[str, ...]:
        return (*ALL_2D, "dino-swin-l") if scale.is_paper else ALL_2D


class Fig1(SeveralDetectors):
    name = "fig1"
    title = "Fig. 1: all detectors converge faster with groups"
    shows = "How does AP grow with the epochs, for every detector without and with groups?"
    source = Table3.source

    def extra_sections(self, results: Results) -> list[Html]:
        page = self.numbers(results)
        lines = curves(page.configurations, read_epoch, read_value(page.metric, 100))
        caption = "Without groups dashed, with groups bold."
        chart = Chart(f"{page.metric} by epoch", "epoch", page.metric, lines, caption)
        return [section("All detectors", charts([chart]))]


class Fig5(Fig8):
    """The instability of the matching, in trainings of Fig. 8."""

    name = "fig5"
    title = "Fig. 5: groups make the matching more stable"
    shows = "How many queries change their object from one evaluation to the next?"
    source = Fig8.source

    def rows(self) -> Sequence[str]:
        return ("none", "dn", "group")

    def extra_sections(self, results: Results) -> list[Html]:
        page = self.numbers(results)
        lines = curves(page.configurations, read_epoch, read_value("instability"))
        chart = Chart(
            "Instability of the matching",
            "epoch",
            "queries",
            lines,
            "Number of queries of an image, in the group that is used at inference, that are "
            "matched to another object, or to none, than at the previous evaluation.",
        )
        rows: list[list[Cell]] = []
        for item in page.configurations:
            values = [row.get("instability") for run in item.runs for row in run.curve[-1:]]
            known = [value for value in values if value is not None]
            rows.append([item.label, sum(known) / len(known) if known else None])
        columns = [Column("training"), Column("instability at the last evaluation", 2, "min")]
        text = (
            "In the paper, the instability falls faster with denoising and fastest with groups. "
            "The measure is that of DN-DETR: a query counts if the index of its object differs."
        )
        caption = "Mean over the seeds."
        parts = [prose(text), charts([chart]), table(columns, rows, caption)]
        return [section("Instability", *parts)]


class Convergence(Item):
    """The gain of groups by the length of the training: Table 4 against Table 3, in one plot."""

    name = "convergence"
    title = "Tables 3 and 4 in one plot: the gain of groups by the length of the training"
    shows = "Does the gain of groups shrink when trainings are longer?"
    source = "The paper's gains are those on COCO after 12 and after 50 epochs."
    most_models = None
    several_lengths = True

    def detectors(self, scale: Scale) -> list[Detector]:
        return scale.detectors(THREE)

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        lengths = choices.epochs or ((12.0, 50.0) if scale.is_paper else small_scale.LENGTHS)
        pairs = []
        equal = choices.equal or self.equal
        for detector in self.detectors(scale):
            for epochs in lengths:
                pairs.append(pair(detector, choices, equal, epochs=epochs, has_paper=False))
        return plan_of(pairs)

    def body(self, results: Results, images: Sequence[Html]) -> list[Html]:
        plot, *others = self.extra_sections(results)
        return [plot, *super().body(results, images)[1:2], *others]

    def extra_sections(self, results: Results) -> list[Html]:
        page = self.numbers(results)
        lines = []
        by_family: dict[str, list[tuple[Configuration, Configuration]]] = {}
        for row in page.gains:
            if not row.over.endswith("-k1"):
                continue  # a longer baseline
            base, grouped = page.by_key[row.over], page.by_key[row.of]
            name = base.label.rsplit(", K", 1)[0]
            by_family.setdefault(name, []).append((base, grouped))
        for name, pairs in by_family.items():
            gains = [gain(base, grouped, page.metric) for base, grouped in pairs]
            epochs = [base.epochs for base, _ in pairs]
            low = [item.low for item in gains] if page.num_seeds > 1 else []
            high = [item.high for item in gains] if page.num_seeds > 1 else []
            lines.append(Series(name, epochs, [item.mean for item in gains], low, high))
        caption = "The band is the 95 % interval over the seeds." if page.num_seeds > 1 else ""
        chart = Chart(
            "Gain of groups by the length of the training",
            "epochs",
            f"gain, {page.metric}",
            lines,
            caption,
        )
        finals = []
        for name, pairs in by_family.items():
            for index, label in ((0, "K = 1"), (1, f"K = {pairs[0][1].groups}")):
                values = [pair[index].metric(page.metric).mean for pair in pairs]
                epochs = [pair[index].epochs for pair in pairs]
                position = list(by_family).index(name)
                finals.append(
                    Series(
                        f"{name}, {label}",
                        epochs,
                        values,
                        colour=position,
                        dashed=index == 0,
                        bold=index == 1,
                    )
                )
        both = Chart(
            f"{page.metric} at the end of trainings of every length",
            "epochs",
            page.metric,
            finals,
            "Without groups dashed, with groups bold.",
        )
        text = (
            "In the paper the gain of Conditional DETR shrinks from +5.0 AP after 12 epochs to "
            "+2.5 after 50, that of DAB-DETR from +3.9 to +2.3, that of DAB-Deformable-DETR goes "
            "from +1.5 to +1.6. Every point here is a training of that length of its own, whose "
            "learning rate falls to zero at its end."
        )
        return [
            section("The gain by the length of the training", prose(text), charts([chart, both]))
        ]
