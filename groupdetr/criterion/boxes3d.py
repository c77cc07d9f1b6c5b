"""Boxes in space: L1 distance of their codes, as cost and as loss (DETR3D, Wang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from groupdetr.criterion.pairs import AllPairs, Boxes, MatchedPairs
from groupdetr.ops.boxes3d import VELOCITY, box_to_code
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects


class Codes(Boxes):
    """Codes as they were said, and those of the objects' boxes."""

    def lay_out(self, predictions: Predictions, objects: Objects) -> tuple[Tensor, ...]:
        return super().lay_out(predictions, coded(objects))

    def matched(
        self,
        predictions: Predictions,
        objects: Objects,
        assignment: Assignment,
        mean_objects: Tensor,
    ) -> MatchedPairs:
        return super().matched(predictions, coded(objects), assignment, mean_objects)


@dataclass(frozen=True)
class CodeL1:
    """The sum of the distances of all numbers of the code. Velocity plays no part in matching, and counts
    ``velocity`` in learning."""

    cost_weight: float
    loss_weight: float
    velocity: float
    name: str = "l1"

    def cost(self, pairs: AllPairs) -> Tensor:
        return pairs.distances[:VELOCITY].sum(0)

    def loss(self, pairs: MatchedPairs) -> Tensor:
        still, moving = pairs.distances[:VELOCITY], pairs.distances[VELOCITY:]
        return still.sum((0, 2)) + self.velocity * moving.sum((0, 2))


def coded(objects: Objects) -> Objects:
    return replace(objects, boxes=box_to_code(objects.boxes))
