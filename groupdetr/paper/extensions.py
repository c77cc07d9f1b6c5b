"""Tables 5 and 6: 3D detection in scenes, and instance segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.paper.convergence import SeveralDetectors
from groupdetr.paper.images import detection_sections, matched_query_sections
from groupdetr.paper.item import Choices, Item, pair, plan_of
from groupdetr.paper.plan import Plan, Row
from groupdetr.paper.scale import LONG, SHORT, Detector, Scale
from groupdetr.report.page import Html


class Table5(SeveralDetectors):
    name = "table5"
    title = "Table 5: 3D detection with several cameras"
    shows = "Do groups help detectors of 3D boxes?"
    source = "The paper's NDS is that on nuScenes after 24 epochs, with a VoVNetV2-99."

    def families(self, _scale: Scale) -> tuple[str, ...]:
        return ("petr", "petrv2")

    def image_sections(self, scale: Scale, rows: Sequence[Row]) -> list[Html]:
        shown = [row for row in rows if row.family == rows[0].family]
        return [
            *detection_sections(scale.store, shown),
            *matched_query_sections(scale.store, shown[-1]),
        ]


class Table6(Item):
    name = "table6"
    title = "Table 6: instance segmentation"
    shows = "Do groups help a detector of masks, after few and after many epochs?"
    source = "The paper's mask AP is that of Mask2Former with a ResNet-50 on COCO."
    most_models = None
    several_groups = True

    def detectors(self, scale: Scale) -> list[Detector]:
        if scale.models or scale.epochs is not None:
            return scale.detectors(["mask2former"])
        return [scale.first("mask2former", length) for length in (SHORT, LONG)]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        equal = choices.equal or self.equal
        pairs = []
        detectors = self.detectors(scale)
        for detector in detectors:
            epochs = detector.settings.epochs if len(detectors) > 1 else None
            pairs.append(pair(detector, choices, equal, True, epochs))
        return plan_of(pairs)

    def image_sections(self, scale: Scale, rows: Sequence[Row]) -> list[Html]:
        shown = [row for row in rows if row.family == rows[-1].family]
        return detection_sections(scale.store, shown)
