"""Frozen modules: parameters that are not trained, in modules that stay in evaluation mode."""

from __future__ import annotations

from torch import nn

from groupdetr.modeling.queries.query_source import QuerySource

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def eval_frozen_modules(part: nn.Module) -> None:
    """Set the modules inside of ``part`` that are frozen to evaluation mode.

    Otherwise their batch norms would update their statistics, and their dropout would change
    features that are not trained. ``part`` itself keeps its mode, and so does a query source inside
    of it: their modes decide which groups run and what is recomputed, and not how a layer computes.
    """
    for child in part.children():
        if is_frozen(child) and not isinstance(child, QuerySource):
            child.eval()
        else:
            eval_frozen_modules(child)


def freeze_batch_norms(part: nn.Module) -> None:
    """Fix the statistics, scales and shifts of all batch norms of a part.

    They stay in evaluation mode, because `eval_frozen_modules` sets the mode of modules without
    gradients. The names of their parameters and buffers stay as they are.
    """
    for module in part.modules():
        if isinstance(module, BATCH_NORMS):
            module.requires_grad_(False)


def trained_batch_norms(part: nn.Module) -> list[str]:
    """Return the names of the batch norms of a part whose statistics change in training."""
    return [
        name
        for name, module in part.named_modules()
        if isinstance(module, BATCH_NORMS) and module.track_running_stats and not is_frozen(module)
    ]


def is_frozen(module: nn.Module) -> bool:
    """True if a module has parameters and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
