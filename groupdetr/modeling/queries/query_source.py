"""The interface of query sources: where object queries come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from groupdetr.groups import inference_groups
from groupdetr.ops.transfer import to_device
from groupdetr.structures.memory import Memory
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target

# Groups as an index of a table [K,...]: a slice, or a tensor on the device of the table
GroupIndex = slice | Tensor


class QuerySource(nn.Module, ABC):
    """Returns K groups of queries in training, and those of `inference_group` otherwise.

    A source with parameters for every group or query declares their axes in a method
    ``parameter_axes``; see `groupdetr.modeling.parameter_axes`.
    """

    # The group that runs at inference; several groups in rising order; None for all groups.
    inference_group: int | tuple[int, ...] | None
    # The groups that a training step runs, in rising order; None for all groups.
    step_groups: tuple[int, ...] | None = None

    @abstractmethod
    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        """``targets`` are given in training; only denoising queries use them."""

    @property
    def active_groups(self) -> GroupIndex:
        """The groups that run now, as an index of a table [K,...].

        They are those of `step_groups` in training, and those of `inference_group` otherwise.
        """
        index = self.active_group_list
        if isinstance(index, slice):
            return index
        # Not a list: the host would wait for a GPU in every operation that copies it.
        device = next(self.parameters()).device
        return to_device(torch.tensor(index), device)

    @property
    def active_group_list(self) -> slice | list[int]:
        """`active_groups` as a slice, or as a list of numbers on the host."""
        step_groups = index_of(self.step_groups)
        return step_groups if self.training else inference_groups(self.inference_group)

    def independent_groups(self) -> tuple[int, ...] | None:
        """Return the groups of a training step if each can be computed without the others.

        A training in chunks of groups then computes the queries of a chunk with the chunk, and
        keeps the activations of no other groups. None: the queries of all groups are computed at
        once, because they are learned and cost nothing.
        """
        return None

    @contextmanager
    def same_random_numbers(
        self, memory: Memory, targets: Sequence[Target] | None
    ) -> Iterator[None]:
        """Let all chunks of a step have the random numbers that its groups have at once.

        A source that draws random numbers draws those of all `independent_groups` here. The chunks
        then run inside of `run_groups`. ``memory`` and ``targets`` are those of the step.
        """
        yield

    @contextmanager
    def run_groups(self, groups: tuple[int, ...]) -> Iterator[None]:
        """Let the forward pass in training run these groups only."""
        before = self.step_groups
        self.step_groups = groups
        try:
            yield
        finally:
            self.step_groups = before


def index_of(groups: tuple[int, ...] | None) -> slice | list[int]:
    """Return groups as an index: a slice for all of them or for neighbours, which copies none.

    None stands for all groups.
    """
    if groups is None:
        return slice(None)
    first, last = groups[0], groups[-1]
    if groups == tuple(range(first, last + 1)):
        return slice(first, last + 1)
    return list(groups)
