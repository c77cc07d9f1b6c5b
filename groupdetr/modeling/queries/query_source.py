"""The interface of query sources: where object queries come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from groupdetr.groups import inference_groups
from groupdetr.structures.memory import Memory
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target


class QuerySource(nn.Module, ABC):
    """Returns K groups of queries in training, and those of `inference_group` otherwise.

    A source with parameters for every group or query declares their axes in a method
    ``parameter_axes``; see `groupdetr.modeling.parameter_axes`.
    """

    # The group that runs at inference; None for all groups.
    inference_group: int | None

    @abstractmethod
    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        """``targets`` are given in training; only denoising queries use them."""

    @property
    def active_groups(self) -> slice:
        """The groups that run now: all in training, those of `inference_group` otherwise."""
        return slice(None) if self.training else inference_groups(self.inference_group)
