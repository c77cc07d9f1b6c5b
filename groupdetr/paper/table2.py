"""Table 2: are groups better than a baseline that is trained for the same time?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.paper.images import detection_sections, matched_query_sections
from groupdetr.paper.item import Choices, Equal, Item, difference, pair, plan_of, trainings
from groupdetr.paper.plan import EqualTimeRow, GainRow, Plan, Row
from groupdetr.paper.results import Results
from groupdetr.paper.scale import LONG, SHORT, Detector, Scale
from groupdetr.report.explanation import explain_groups
from groupdetr.report.page import Html

# The paper's trainings of equal wall time: the epochs of the baseline in place of 12 and of 50.
LONGER = {SHORT: "15e", LONG: "60e"}


class Table2(Item):
    name = "table2"
    title = "Table 2: groups against a longer baseline of the same training time"
    shows = "Is a detector with groups better than one without that is trained for as long?"
    source = "The paper's AP is that on COCO with a ResNet-50, after 12 or 50 epochs."
    equal: ClassVar[Equal] = "time"
    most_models: ClassVar[int | None] = None
    several_groups = True

    def detectors(self, scale: Scale) -> list[Detector]:
        families = ["conditional-detr", "dab-detr"]
        detectors = scale.detectors(families)
        if scale.is_paper and scale.epochs is None:
            detectors += scale.detectors(families, LONG)
        return detectors

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        detectors = self.detectors(scale)
        named = len(detectors) > 1
        if scale.is_paper and scale.epochs is None and choices.equal is None:
            return self._paper_plan(scale, detectors, choices)
        equal = choices.equal or self.equal
        pairs = []
        several_lengths = len({detector.length for detector in detectors}) > 1
        for detector in detectors:
            longer = self._reported_longer(detector)
            epochs = detector.settings.epochs if several_lengths else None
            pairs.append(pair(detector, choices, equal, named, epochs, reported_longer=longer))
        return plan_of(pairs)

    def _reported_longer(self, detector: Detector) -> float | None:
        """Return the paper's AP of the longer baseline."""
        row = f"table2/{detector.family}-r50-{LONGER[detector.length]}"
        chosen = EXPERIMENTS.get(row)
        return None if chosen is None else chosen.reported

    def _paper_plan(self, scale: Scale, detectors: Sequence[Detector], choices: Choices) -> Plan:
        """Return the paper's own trainings, whose longer baselines have 15 and 60 epochs."""
        rows: list[Row | EqualTimeRow] = []
        gains: list[GainRow] = []
        for detector in detectors:
            epochs = detector.settings.epochs
            both = pair(detector, choices, "epochs", epochs=epochs)
            base, *grouped = both.rows
            name = f"table2/{detector.family}-r50-{LONGER[detector.length]}"
            chosen = EXPERIMENTS[name]
            longer = Detector(
                family=detector.family,
                label=detector.label,
                model=name,
                queries=detector.queries,
                settings=chosen.settings,
                data=detector.data,
                groups=1,
                pretrained_backbone=detector.pretrained_backbone,
            )
            longer_row = Row(
                f"{base.key}-longer",
                f"{detector.label}, K = 1, {chosen.settings.epochs:g} epochs",
                trainings(longer, 1, choices),
                baseline=True,
                family=both.rows[0].key,
                reported=chosen.reported,
            )
            rows += [base, longer_row, *grouped]
            gains += both.gains
            for row in grouped:
                label = f"{row.label}: gain at the paper's equal time"
                paper_gain = difference(row.reported, longer_row.reported)
                gains.append(GainRow(label, longer_row.key, row.key, paper_gain))
        return Plan(rows, gains)

    def texts(self, results: Results) -> list[str]:
        page = self.numbers(results)
        first = page.configurations[0]
        grouped = [item for item in page.configurations if not item.baseline]
        steps = ", ".join(f"{page.step_ratio(item):.2f} ({item.label})" for item in grouped)
        return [
            "Training with groups takes longer per step, so a comparison at equal epochs is not "
            "enough. The longer baseline is trained for as many epochs as take the "
            f"{page.time_name} of the training with groups, with a schedule of that length. "
            f"Equal time is equal {page.time_name} of the process, without evaluations: "
            "two trainings side by side on a busy machine can differ by a third in wall time.",
            f"Measured {page.time_name} of a step over that of a step with one group, as a mean of "
            f"whole trainings: {steps}. The paper has 1.22 for Conditional DETR with eleven groups "
            "on eight A100."
            if steps
            else f"{first.label} is the only training.",
        ]

    def extra_sections(self, _results: Results) -> list[Html]:
        return [explain_groups()]

    def image_sections(self, scale: Scale, rows: Sequence[Row]) -> list[Html]:
        first = rows[0].family
        shown = [row for row in rows if row.family in (first, rows[0].key)]
        return [
            *detection_sections(scale.store, shown),
            *matched_query_sections(scale.store, shown[-1]),
        ]
