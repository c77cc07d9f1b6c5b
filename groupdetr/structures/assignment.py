"""The result of matching: pairs of a query and an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from groupdetr.structures.tensor_dataclass import Movable, expect


@dataclass
class Assignment(Movable):
    """M pairs (query, object) of each of L stages; no object stands twice in one group of one stage."""

    pairs: Tensor  # [4,L,M] int64: image, group, query, target; one tensor, so one copy between devices

    @classmethod
    def of(cls, *columns: np.ndarray) -> Assignment:
        """From image, group, query and target, [L,M] each."""
        return cls(torch.from_numpy(np.stack(columns).astype(np.int64, copy=False)))

    def __post_init__(self) -> None:
        expect(
            self.pairs.shape[:1] == (4,), f"pairs must be [4,L,M], not {tuple(self.pairs.shape)}"
        )

    @property
    def image(self) -> Tensor:
        return self.pairs[0]

    @property
    def group(self) -> Tensor:
        return self.pairs[1]

    @property
    def query(self) -> Tensor:
        return self.pairs[2]

    @property
    def target(self) -> Tensor:
        """Index into the image's objects."""
        return self.pairs[3]

    def repeated(self, stages: int) -> Assignment:
        """The same pairs in each of L stages: [1,M] -> [L,M]."""
        return Assignment(self.pairs.expand(-1, stages, -1))

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """Stage, image, group, query and target: five indices that broadcast to [L,M]."""
        stage = torch.arange(self.pairs.shape[1], device=self.pairs.device).unsqueeze(1)
        return stage, *self.pairs.unbind()

    def gather(self, x: Tensor) -> Tensor:
        """What belongs to the assigned queries: [L,B,K,N,...] -> [L,M,...]."""
        return x[self.columns[:4]]
