"""Terms of 2D boxes: L1 distance and generalized IoU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from groupdetr.criterion.pairs import AllBoxPairs, MatchedBoxPairs
from groupdetr.criterion.term import Term
from groupdetr.ops.boxes import giou_distance, giou_distance_in_place


@dataclass(frozen=True)
class L1(Term[AllBoxPairs, MatchedBoxPairs]):
    """The sum of the absolute differences of cx, cy, w and h, relative to the image.

    >>> l1 = groupdetr.L1(cost_weight=5, loss_weight=5)  # the weights of DETR
    """

    name: ClassVar[str] = "l1"
    location: ClassVar[str | None] = "box"

    def cost(self, pairs: AllBoxPairs) -> Tensor:
        return pairs.distances.sum(0)

    def loss(self, pairs: MatchedBoxPairs) -> Tensor:
        return pairs.distances.sum((0, 2))


@dataclass(frozen=True)
class GIoU(Term[AllBoxPairs, MatchedBoxPairs]):
    """One minus the generalized IoU (Rezatofighi et al. 2019).

    >>> giou = groupdetr.GIoU(cost_weight=2, loss_weight=2)  # the weights of DETR
    """

    name: ClassVar[str] = "giou"
    location: ClassVar[str | None] = "box"

    # Added to the areas of union and hull: 0 in Conditional DETR's code, 1e-6 in DAB-DETR's
    eps: float = 0.0

    def cost(self, pairs: AllBoxPairs) -> Tensor:
        pred_size, target_size = pairs.pred[2:], pairs.target[2:]
        return giou_distance_in_place(pred_size, target_size, pairs.distances, self.eps)

    def loss(self, pairs: MatchedBoxPairs) -> Tensor:
        pred_size, target_size = pairs.pred[2:], pairs.target[2:]
        return giou_distance(pred_size, target_size, pairs.distances, self.eps).sum(1)
