"""Frozen modules: parameters that are not trained, in modules that stay in evaluation mode."""

from __future__ import annotations

from torch import nn

from groupdetr.modeling.queries.query_source import QuerySource


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


def is_frozen(module: nn.Module) -> bool:
    """True if a module has parameters and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
