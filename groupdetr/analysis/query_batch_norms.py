"""Batch norms of queries, which hide a leak in evaluation mode.

In training mode a batch norm computes its statistics from the queries of all groups and images, so
every group depends on all others. In evaluation mode it has fixed statistics, and a measurement of
that mode would find nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from groupdetr.modeling.frozen import BATCH_NORMS, is_frozen

# A batch norm and what it was called with
NormCall = tuple[nn.Module, Tensor]


@contextmanager
def fixed_batch_norms() -> Iterator[list[NormCall]]:
    """Note the calls of all batch norms that use fixed statistics now, but not in training.

    Those that are frozen use the same statistics in training.
    """
    calls: list[NormCall] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not isinstance(module, BATCH_NORMS) or module.training or is_frozen(module):
            return
        # Without running statistics, those of the queries are used in both modes.
        if module.running_mean is not None and args:
            calls.append((module, args[0].detach().clone()))

    with register_module_forward_pre_hook(note):
        yield calls


def norm_of_queries(
    before: Sequence[NormCall], after: Sequence[NormCall], tolerance: float
) -> nn.Module | None:
    """Return the first batch norm whose input changes with the queries, None if there is none.

    ``before`` and ``after`` are the calls of two passes with different queries.
    """
    for (norm, x), (_, y) in zip(before, after):
        if x.shape != y.shape or not float((x - y).abs().max()) <= tolerance:
            return norm
    return None


def reason_to_refuse(norm: nn.Module) -> str:
    """Return why a measurement in evaluation mode would prove nothing."""
    return (
        f"a {type(norm).__name__} of the queries is in evaluation mode: in training, its "
        "statistics are those of all groups, which would not be noticed"
    )
