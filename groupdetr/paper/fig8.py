"""Fig. 8: denoising and groups, each alone and both."""

from __future__ import annotations

from collections.abc import Sequence

from groupdetr.errors import UsageError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.paper.item import Choices, Item, difference, trainings
from groupdetr.paper.plan import GainRow, Plan, Row
from groupdetr.paper.results import Results
from groupdetr.paper.scale import Detector, Scale
from groupdetr.report.comparison import Gain

# key (a row of the paper's figure), label, family, whether it has groups
ROWS = {
    "none": ("none", "dab-detr", False),
    "dn": ("denoising", "dn-detr", False),
    "group": ("groups", "dab-detr", True),
    "dn-group": ("both", "dn-detr", True),
}
GAINS = (
    ("denoising alone", "none", "dn"),
    ("groups alone", "none", "group"),
    ("both", "none", "dn-group"),
    ("groups in addition to denoising", "dn", "dn-group"),
)


class Fig8(Item):
    name = "fig8"
    title = "Fig. 8: groups and denoising"
    shows = "Do groups still help if denoising is used?"
    source = "The paper's AP is that of DAB-DETR with a ResNet-50 after 12 epochs of COCO."

    most_models = 2

    def rows(self) -> Sequence[str]:
        """Return the keys of the trainings that this item has."""
        return tuple(ROWS)

    def detectors(self, scale: Scale) -> list[Detector]:
        families = ("dab-detr", "dn-detr")
        detectors = scale.detectors(families)
        if sorted(detector.family for detector in detectors) != list(families):
            raise UsageError(
                f"{self.name} compares a DAB-DETR and a DN-DETR",
                remedy="for example --models dab-detr-lite dn-detr-lite",
            )
        return detectors

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        by_family = {detector.family: detector for detector in self.detectors(scale)}
        rows = []
        for key in self.rows():
            label, family, has_groups = ROWS[key]
            detector = by_family[family]
            groups = max(choices.groups, default=detector.groups) if has_groups else 1
            paper = EXPERIMENTS[f"fig8/{key}"].reported
            members = trainings(detector, groups, choices)
            rows.append(Row(key, label, members, baseline=not has_groups, reported=paper))
        reported = {row.key: row.reported for row in rows}
        gains = [
            GainRow(label, over, of, difference(reported[of], reported[over]))
            for label, over, of in GAINS
            if {over, of} <= reported.keys()
        ]
        return Plan(rows, gains)

    def texts(self, results: Results) -> list[str]:
        names = [row.label for row in results.gains]
        text = [
            "The detector is trained as it is, with denoising queries, with groups, and with "
            "both. After training, one group is used, without denoising."
        ]
        if "both" in names:
            text.append(overlap_text(results))
        return text


def overlap_text(results: Results) -> str:
    """Return a sentence on whether both together bring the sum of the two gains."""
    page = results.page("")
    values = {
        key: dict(zip(item.seeds, item.percentages(page.metric)))
        for key, item in page.by_key.items()
    }
    seeds = set.intersection(*(set(by_seed) for by_seed in values.values()))
    differences = []
    for seed in sorted(seeds):
        none, dn, group, both = (values[key][seed] for key in ROWS)
        differences.append(both - dn - group + none)
    measured = Gain.from_differences(differences)
    text = f"Both together bring {measured} {page.metric} more than the sum of the two gains"
    return f"{text}; the paper has −1.9, because the gains overlap."
