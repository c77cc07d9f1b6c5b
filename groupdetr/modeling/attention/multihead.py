"""Scaled dot-product attention over heads, without projections.

This is the only file that calls the fused attention kernels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[...,N,heads*C] -> [...,heads,N,C]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Query [B,heads,N,Cq], key [B,heads,S,Cq], value [B,heads,S,Cv] -> [B,N,heads*Cv].

    ``blocked``, a bool that broadcasts to [B,heads,N,S], is True for keys that a query must not
    attend to.
    """
    width = value.shape[-1]
    # The fused kernel on a CPU needs Cv = Cq. Zero columns cost less than the attention matrix that
    # the fallback would store. CUDA's memory-efficient kernel takes a narrower value as it is.
    if value.device.type == "cpu" and width < query.shape[-1]:
        value = F.pad(value, (0, query.shape[-1] - width))
    allowed = None if blocked is None else ~blocked
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, dropout_p=dropout
    )
    return attended[..., :width].transpose(1, 2).flatten(2)
