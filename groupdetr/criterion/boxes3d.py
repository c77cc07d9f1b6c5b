"""Term of 3D boxes: L1 distance of the encoded boxes (DETR3D, Wang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from groupdetr.criterion.pairs import AllBoxPairs, BoxPairBuilder, MatchedBoxPairs, ObjectTotals
from groupdetr.criterion.term import Term
from groupdetr.ops.boxes3d import VELOCITY, encode_boxes3d
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import TargetBatch


class EncodedBoxes3D(BoxPairBuilder):
    """Pairs of encoded 3D boxes. Predictions are encoded already; the targets are encoded here.

    >>> terms = [groupdetr.Focal(2, 2), groupdetr.EncodedBoxL1(0.25, 0.25, velocity=0.2)]
    >>> criterion = groupdetr.SetCriterion(terms, pair_builder=groupdetr.EncodedBoxes3D())
    """

    locations: ClassVar[tuple[str, ...]] = ("box3d",)
    numbers_of_a_box: ClassVar[int] = 9

    def cost_inputs(
        self, predictions: Predictions, targets: TargetBatch
    ) -> tuple[Tensor | None, ...]:
        return super().cost_inputs(predictions, encode_boxes(targets))

    def matched_pairs(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        objects: ObjectTotals,
    ) -> MatchedBoxPairs:
        encoded = encode_boxes(targets)
        return super().matched_pairs(predictions, encoded, assignment, objects)


@dataclass(frozen=True)
class EncodedBoxL1(Term[AllBoxPairs, MatchedBoxPairs]):
    """The sum of the absolute differences of the numbers of an encoded box.

    The matching cost ignores the two numbers of the velocity.

    >>> l1 = groupdetr.EncodedBoxL1(cost_weight=0.25, loss_weight=0.25, velocity=0.2)  # as in PETR
    """

    name: ClassVar[str] = "l1"
    location: ClassVar[str | None] = "box3d"

    velocity: float  # the weight of the velocity in the loss; all other numbers have the weight 1

    def cost(self, pairs: AllBoxPairs) -> Tensor:
        return pairs.distances[:VELOCITY].sum(0)

    def loss(self, pairs: MatchedBoxPairs) -> Tensor:
        box = pairs.distances[:VELOCITY].sum((0, 2))
        velocity = pairs.distances[VELOCITY:].sum((0, 2))
        return box + self.velocity * velocity


def encode_boxes(targets: TargetBatch) -> TargetBatch:
    """Return the targets with encoded boxes [B,T,10]."""
    return replace(targets, boxes=encode_boxes3d(targets.boxes))
