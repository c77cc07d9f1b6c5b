"""Table 7: which parts of Group DETR matter?"""

from __future__ import annotations

from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.paper.item import Choices, Item, difference
from groupdetr.paper.plan import GainRow, Plan, Row
from groupdetr.paper.results import Results
from groupdetr.paper.scale import Detector, Scale
from groupdetr.paper.trainings import Field

JOINT: tuple[Field, ...] = (("group_attention", "attend_across_groups"),)
NAIVE: tuple[Field, ...] = (*JOINT, ("match", "match_naively"), ("inference_group", None))

# row of the paper, name, whether it has groups, and the fields of the recipe
ROWS: tuple[tuple[str, str, bool, tuple[Field, ...]], ...] = (
    ("a", "one-to-one", False, ()),
    ("b", "naive one-to-many", True, NAIVE),
    ("c", "groups, joint self-attention", True, JOINT),
    ("d", "Group DETR", True, ()),
)


class Table7(Item):
    name = "table7"
    title = "Table 7: which parts of Group DETR matter"
    shows = "Do the gains need groups, and self-attention that is separate in each group?"
    source = "The paper's AP is that of Conditional DETR with a ResNet-50 after 12 epochs of COCO."

    def detectors(self, scale: Scale) -> list[Detector]:
        return [scale.first("conditional-detr")]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        (detector,) = self.detectors(scale)
        groups = max(choices.groups, default=detector.groups)
        rows = []
        for row, name, has_groups, fields in ROWS:
            trainings = []
            for seed in choices.seeds:
                count = groups if has_groups else 1
                trainings.append(detector.training(count, seed, fields))
            paper = EXPERIMENTS[f"table7/{row}"].reported
            label = f"({row}) {name}"
            rows.append(Row(row, label, tuple(trainings), baseline=row == "a", reported=paper))
        a, b, c, d = (row.reported for row in rows)
        gains = [
            GainRow("(d) over (a): Group DETR", "a", "d", difference(d, a)),
            GainRow("(d) over (c): separate self-attention", "c", "d", difference(d, c)),
            GainRow("(c) over (a): groups alone", "a", "c", difference(c, a)),
            GainRow("(b) over (a): naive one-to-many", "a", "b", difference(b, a)),
        ]
        return Plan(rows, gains)

    def texts(self, results: Results) -> list[str]:
        groups = max(item.groups for item in results.configurations)
        queries = results.configurations[0].details.get("queries")
        return [
            f"(a) is the detector without groups, with {queries} queries. (b) assigns every object "
            f"to {groups} of all {groups} times as many queries, without groups; all queries are "
            "used at inference, without non-maximum suppression, so that nothing removes "
            "duplicates. (c) matches each group one to one, but the queries of all groups attend "
            "to each other in training. (d) is Group DETR: self-attention is separate in each "
            "group, as at inference."
        ]
