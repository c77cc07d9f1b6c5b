"""Table 1: is it the decoder or the encoder that groups improve?"""

from __future__ import annotations

from dataclasses import replace

from groupdetr.paper.item import Choices, Item, difference
from groupdetr.paper.plan import GainRow, Plan, Row
from groupdetr.paper.scale import LONG, SHORT, Detector, Scale
from groupdetr.paper.trainings import Training
from groupdetr.settings import Part

FROZEN: tuple[Part, ...] = ("backbone", "encoder")
REPORTED = {"a": 40.6, "b": 41.5, "c": 42.9}  # Conditional DETR, ResNet-50, 50 epochs


class Table1(Item):
    name = "table1"
    title = "Table 1: groups with a frozen encoder"
    shows = "Do groups improve the decoder, the encoder, or both?"
    source = "The paper's AP is that of Conditional DETR with a ResNet-50 after 50 epochs of COCO."

    def detectors(self, scale: Scale) -> list[Detector]:
        return [scale.first("conditional-detr", LONG if scale.is_paper else SHORT)]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        (detector,) = self.detectors(scale)
        groups = max(choices.groups, default=detector.groups)
        frozen = replace(detector, settings=replace(detector.settings, freeze=FROZEN))
        members: dict[str, list[Training]] = {"a": [], "b": [], "c": []}
        for seed in choices.seeds:
            trained = detector.training(1, seed)
            for key, count in (("a", 1), ("b", groups)):
                members[key].append(frozen.training(count, seed, parent=trained, parts=FROZEN))
            members["c"].append(detector.training(groups, seed))
        labels = {
            "a": "(a) frozen encoder, K = 1",
            "b": f"(b) frozen encoder, K = {groups}",
            "c": f"(c) all trained, K = {groups}",
        }
        rows = []
        for key, label in labels.items():
            rows.append(
                Row(key, label, tuple(members[key]), baseline=key == "a", reported=REPORTED[key])
            )
        gains = [
            GainRow("(b) over (a): the decoder", "a", "b", difference(41.5, 40.6)),
            GainRow("(c) over (b): the encoder, too", "b", "c", difference(42.9, 41.5)),
            GainRow("(c) over (a)", "a", "c", difference(42.9, 40.6)),
        ]
        return Plan(rows, gains)

    def texts(self, _results: object) -> list[str]:
        return [
            "Backbone and encoder of (a) and (b) are those of a detector that was trained without "
            "groups, and they are not trained any more; queries, decoder and heads begin anew. In "
            "(c) everything is trained with groups."
        ]
