"""The result of matching: pairs of a query and an object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from groupdetr.structures.tensor_dataclass import TensorDataclass, require


@dataclass
class Assignment(TensorDataclass):
    """M pairs (query, object) for each of L supervised layers.

    With one-to-one assignment in every group, no object occurs twice in one group of one layer.

    >>> costs = np.random.rand(6, 2, 11, 3, 300)  # of six layers, two images, eleven groups
    >>> assignment = groupdetr.match_groups(costs, counts=[3, 1])  # three objects, and one
    >>> assignment.query.shape  # M = 11 * (3 + 1)
    torch.Size([6, 44])
    >>> assignment.gather(torch.rand(6, 2, 11, 300, 4)).shape  # the boxes of these queries
    torch.Size([6, 44, 4])
    """

    # [4,L,M] int64: image, group, query, target. One tensor needs one copy between devices.
    pairs: Tensor

    @classmethod
    def from_columns(
        cls, image: np.ndarray, group: np.ndarray, query: np.ndarray, target: np.ndarray
    ) -> Assignment:
        """Create from four arrays [L,M]."""
        columns = np.stack([image, group, query, target])
        return cls(torch.from_numpy(columns.astype(np.int64, copy=False)))

    def __post_init__(self) -> None:
        shape = tuple(self.pairs.shape)
        require(shape[:1] == (4,), f"pairs must be [4,L,M], not {shape}")

    @property
    def image(self) -> Tensor:
        """[L,M] index of the image in the batch."""
        return self.pairs[0]

    @property
    def group(self) -> Tensor:
        """[L,M] index of the group."""
        return self.pairs[1]

    @property
    def query(self) -> Tensor:
        """[L,M] index of the query in its group."""
        return self.pairs[2]

    @property
    def target(self) -> Tensor:
        """[L,M] index of the object in its image."""
        return self.pairs[3]

    def expand_layers(self, layers: int) -> Assignment:
        """Use the same pairs for every layer: [1,M] -> [L,M]."""
        return Assignment(self.pairs.expand(-1, layers, -1))

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """Layer, image, group, query and target: five indices that broadcast to [L,M]."""
        layer = torch.arange(self.pairs.shape[1], device=self.pairs.device).unsqueeze(1)
        return layer, *self.pairs.unbind()

    def gather(self, x: Tensor) -> Tensor:
        """Return the values of the assigned queries: [L,B,K,N,...] -> [L,M,...]."""
        return x[self.columns[:4]]
