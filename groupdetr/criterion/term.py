"""A term is one measure l(y, y_bar) used twice: as a cost to match and as a loss to learn."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Term(Protocol):
    """One list of terms drives both matcher and loss. Everything is computed in float32 under any autocast."""

    @property
    def name(self) -> str: ...

    @property
    def cost_weight(self) -> float: ...

    @property
    def loss_weight(self) -> float: ...

    def cost(self, pairs: Any) -> Tensor:
        """What the pairing has of all: of every query for every object of its image: [L,B,K,T,N]."""
        ...

    def loss(self, pairs: Any) -> Tensor:
        """What the pairing has of the matched: summed over images, groups and queries, before the normaliser: [L]."""
        ...
