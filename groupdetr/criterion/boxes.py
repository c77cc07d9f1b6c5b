"""Boxes: L1 distance and generalized IoU, each as cost and as loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from groupdetr.criterion.pairs import AllPairs, MatchedPairs, Pairs
from groupdetr.ops.boxes import giou_distance


@dataclass(frozen=True)
class L1:
    """The sum of the distances of centre and size, in shares of the image."""

    cost_weight: float
    loss_weight: float
    name: str = "l1"

    def cost(self, pairs: AllPairs) -> Tensor:
        return pairs.distances.sum(0)

    def loss(self, pairs: MatchedPairs) -> Tensor:
        return pairs.distances.sum((0, 2))


@dataclass(frozen=True)
class GIoU:
    """One minus the generalized IoU.

    ``eps`` is that of `giou_distance`: 0 in Conditional DETR's code, 1e-6 in DAB-DETR's.
    """

    cost_weight: float
    loss_weight: float
    eps: float = 0.0
    name: str = "giou"

    def cost(self, pairs: AllPairs) -> Tensor:
        return self.of(pairs)

    def loss(self, pairs: MatchedPairs) -> Tensor:
        return self.of(pairs).sum(1)

    def of(self, pairs: Pairs) -> Tensor:
        return giou_distance(pairs.said[2:], pairs.wanted[2:], pairs.distances, self.eps)
