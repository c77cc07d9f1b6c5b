"""Training some of the K groups in a step: drawn at random, or one group in the second half.

The paper has no such training. Both ways make a step with groups cheaper, see
`groupdetr.engine.step_groups`.
"""

from __future__ import annotations

from groupdetr.errors import UsageError
from groupdetr.paper.item import Choices, Item, trainings
from groupdetr.paper.plan import GainRow, Plan, Row
from groupdetr.paper.scale import Detector, Scale

SHARE_OF_GROUPS = 3  # A step trains a third of the groups, if they are drawn at random.
FEWEST_GROUPS = 2  # With one group there is nothing to draw and nothing to leave out.


class FewerGroups(Item):
    name = "step-groups"
    title = "Fewer groups in a step: drawn at random, or one group in the second half"
    shows = "Is it better to train all groups in every step, or fewer of them in less time?"
    source = "The paper's AP is that of Conditional DETR with a ResNet-50 after 12 epochs of COCO."

    def detectors(self, scale: Scale) -> list[Detector]:
        return [scale.first("conditional-detr")]

    def plan(self, scale: Scale, choices: Choices) -> Plan:
        (detector,) = self.detectors(scale)
        groups = max(choices.groups, default=detector.groups)
        if groups < FEWEST_GROUPS:
            raise UsageError(
                f"{self.name} trains some of several groups", remedy="--groups 2 or more"
            )
        per_step = max(1, groups // SHARE_OF_GROUPS)
        schedule = f"{groups}:0.5,1:1"
        one = trainings(detector, 1, choices)
        all_groups = trainings(detector, groups, choices)
        drawn = tuple(training.with_changes(groups_per_step=per_step) for training in all_groups)
        halves = tuple(training.with_changes(groups_schedule=schedule) for training in all_groups)
        rows = [
            Row("k1", "K = 1", one, baseline=True, reported=detector.reported(False)),
            Row("all", f"K = {groups}", all_groups, reported=detector.reported(True)),
            Row("drawn", f"K = {groups}, {per_step} of them in a step", drawn),
            Row("halves", f"K = {groups} in the first half, then 1", halves),
        ]
        others = rows[1:]
        gains = [GainRow(f"{row.label}: gain over K = 1", "k1", row.key) for row in others]
        gains += [GainRow(f"{row.label}: over all groups", "all", row.key) for row in others[1:]]
        return Plan(rows, gains)
