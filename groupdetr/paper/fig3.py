"""Fig. 3: the queries of all groups that are matched to an object."""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.paper.images import matched_query_sections
from groupdetr.paper.item import Choices, Item, pair
from groupdetr.paper.plan import Plan, Row
from groupdetr.paper.results import Results
from groupdetr.paper.scale import Detector, Scale
from groupdetr.report.explanation import explain_groups
from groupdetr.report.page import Html


class OneDetector(Item):
    """An item about one training with groups, that of Table 3."""

    def detectors(self, scale: Scale) -> list[Detector]:
        return [scale.first("conditional-detr")]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        (detector,) = self.detectors(scale)
        both = pair(detector, choices, "epochs", named=False)
        return Plan(both.rows[-1:])


class Fig3(OneDetector):
    name = "fig3"
    title = "Fig. 3: one object and its query in every group"
    shows = "Where do the queries of the groups look that are matched to the same object?"
    source = "The paper shows images of COCO."

    def body(self, results: Results, images: Sequence[Html]) -> list[Html]:
        return [explain_groups(), *images, *super().body(results, [])[1:]]

    def image_sections(self, scale: Scale, rows: Sequence[Row]) -> list[Html]:
        return matched_query_sections(scale.store, rows[-1])
