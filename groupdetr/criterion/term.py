"""A term is one measure l(y, y_bar) used twice: as a cost to match and as a loss to learn."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from groupdetr.structures import Assignment, Objects, Predictions


class Term(Protocol):
    """One list of terms drives both matcher and loss. Everything is computed in float32 under any autocast."""

    @property
    def name(self) -> str: ...

    @property
    def cost_weight(self) -> float: ...

    @property
    def loss_weight(self) -> float: ...

    def cost(self, predictions: Predictions, objects: Objects) -> Tensor:
        """Of every query for every object of its image: [L,B,K,N,.] and [B,T,.] -> [L,B,K,T,N]."""
        ...

    def loss(self, predictions: Predictions, objects: Objects, assignment: Assignment) -> Tensor:
        """Summed over images, groups and queries, before the normaliser: [L]."""
        ...


def facing(queries: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of queries [L,B,K,N,C] and of objects [B,T,C] so that they broadcast to [L,B,K,T,N,C]."""
    return queries.float().unsqueeze(-3), objects.float()[:, None, :, None]
