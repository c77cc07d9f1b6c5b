"""Gradient checkpointing: the backward pass computes activations again instead of keeping them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, *inputs: object, recompute: bool) -> Tensor:
    """Return the output of a layer. With ``recompute``, its activations are not kept."""
    if recompute:
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
