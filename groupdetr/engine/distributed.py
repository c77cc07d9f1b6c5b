"""How `DistributedDataParallel` exchanges the gradients of a training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from groupdetr.engine.step_groups import trains_some_groups
from groupdetr.settings import Settings


def wrap_for_processes(
    network: nn.Module, accelerator: Accelerator, settings: Settings
) -> nn.Module:
    """Wrap a network so that the processes of a training exchange its gradients."""
    accelerator.ddp_handler = distributed_options(settings)
    with without_warning_of_old_name():
        wrapped: nn.Module = accelerator.prepare_model(network)
    return wrapped


def distributed_options(settings: Settings) -> DistributedDataParallelKwargs:
    """Return the options of `DistributedDataParallel` for a training in several processes.

    Gradients are views of the buckets in which they are exchanged, which saves a copy of all
    gradients, in time and in memory. Buffers are not broadcast in every step: they are equal in all
    processes, because norms are fixed or take the statistics of all processes
    (`synchronise_batch_norms`).
    """
    return DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        static_graph=has_static_graph(settings),
    )


@contextmanager
def without_warning_of_old_name() -> Iterator[None]:
    """Leave out the warning that ``broadcast_buffers`` has a new name in later versions.

    Accelerate knows the old name only, and so does PyTorch 2.11.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        yield


def has_static_graph(settings: Settings) -> bool:
    """True if every step has the same autograd graph, as far as gradients are concerned.

    It is not so if steps train different groups. With micro-batches, only the last one exchanges
    gradients, and PyTorch records the graph in the first one.
    """
    return settings.accumulate == 1 and not trains_some_groups(settings)
