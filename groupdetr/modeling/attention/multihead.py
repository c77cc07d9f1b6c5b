"""Scaled dot-product attention over heads, without projections: the one place that calls the fused kernels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

View = tuple[
    Tensor, ...
]  # what a cross-attention sees of an image, whoever looks: its keys and values


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[...,N,heads*C] -> [...,heads,N,C]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def attend(
    query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Query [B,heads,N,Cq], key [B,heads,S,Cq], value [B,heads,S,Cv] -> [B,N,heads*Cv].

    ``blocked``, bool that broadcasts to [B,heads,N,S]: True keys are not seen. CPU's fused kernel needs Cv = Cq: a
    narrower value is widened by zeros, which cost less than the explicit attention matrix of the fallback; CUDA's
    memory-efficient kernel takes it as it is.
    """
    width = value.shape[-1]
    if value.device.type == "cpu" and width < query.shape[-1]:
        value = F.pad(value, (0, query.shape[-1] - width))
    seen = None if blocked is None else ~blocked
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
    return out[..., :width].transpose(1, 2).flatten(2)
