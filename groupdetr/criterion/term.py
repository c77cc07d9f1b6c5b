"""A term: one measure of a pair (query, object), used both as matching cost and as loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

AllPairsT = TypeVar("AllPairsT")
MatchedPairsT = TypeVar("MatchedPairsT")


@dataclass(frozen=True)
class Term(ABC, Generic[AllPairsT, MatchedPairsT]):
    """One measure with its two weights. One list of terms defines both the matcher and the losses.

    The type parameters are the pairs that `PairBuilder.all_pairs` and `PairBuilder.matched_pairs`
    return. Everything is computed in float32, also under autocast.

    A term of your own inherits from this class, with a name and the two methods:

    >>> class Centre(groupdetr.Term):
    ...     name = "centre"
    ...
    ...     def cost(self, pairs):
    ...         return pairs.distances[:2].sum(0)  # cx and cy
    ...
    ...     def loss(self, pairs):
    ...         return pairs.distances[:2].sum((0, 2))
    >>> terms = [groupdetr.Focal(2, 2), groupdetr.GIoU(2, 2), Centre(5, 5)]
    >>> criterion = groupdetr.SetCriterion(terms)
    """

    name: ClassVar[str]  # the last part of the names of its losses, such as "layer0/giou"
    # What it measures: "box", "box3d" or "mask". None: the class, or anything.
    location: ClassVar[str | None] = None

    cost_weight: float  # in the matching
    loss_weight: float  # in the loss

    @abstractmethod
    def cost(self, pairs: AllPairsT) -> Tensor:
        """Return the cost of every query for every object of its image, [L,B,K,T,N]."""

    @abstractmethod
    def loss(self, pairs: MatchedPairsT) -> Tensor:
        """Return the loss of every layer, [L], summed over images, groups and queries.

        It is not normalised yet.
        """
