"""Masked cross-attention (Mask2Former, Cheng et al. 2022, Sec. 3.2.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.groups import flatten_groups
from groupdetr.modeling.attention.cross_attention import CrossAttention, KeysValues
from groupdetr.modeling.attention.multihead import dot_product_attention, split_heads
from groupdetr.modeling.attention.self_attention import attention_projections
from groupdetr.structures.memory import Memory, PixelMemory


class MaskedCrossAttention(CrossAttention):
    """Queries attend to one level of the memory, each inside the mask that it predicted last.

    The reference [B,K,N,C] of a query is the embedding of that mask. The mask is evaluated here,
    at the size of the level.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float, level: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.level = level
        self.query_proj, self.key_proj, self.value_proj, self.output_proj = attention_projections(
            channels
        )

    def precompute_keys_values(self, memory: Memory) -> KeysValues:
        """Return keys and values [B,heads,S,C/heads] of the S tokens of the level, and its pixels.

        The pixels [B,C,S] are the mask features at the size of the level. They are detached,
        because the attention mask has no gradient.
        """
        assert isinstance(memory, PixelMemory)
        tokens = memory.levels(memory.tokens)[self.level].flatten(1, 2)
        position = memory.levels(memory.position)[self.level].flatten(1, 2)
        pixels = F.interpolate(
            memory.mask_features.pixels.detach(),
            memory.shapes[self.level],
            mode="bilinear",
            align_corners=False,
        )
        key = split_heads(self.key_proj(tokens + position), self.num_heads)
        value = split_heads(self.value_proj(tokens), self.num_heads)
        return key, value, pixels.flatten(2)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Memory,
        keys_values: KeysValues | None = None,
    ) -> Tensor:
        key, value, pixels = keys_values or self.precompute_keys_values(memory)
        query = split_heads(self.query_proj(flatten_groups(content + position)), self.num_heads)
        blocked = outside_masks(flatten_groups(reference), pixels).unsqueeze(1)
        attended = dot_product_attention(
            query, key, value, blocked, self.dropout if self.training else 0.0
        )
        return self.output_proj(attended).reshape(content.shape)


@torch.no_grad()
def outside_masks(embedding: Tensor, pixels: Tensor) -> Tensor:
    """Return [B,N,S] bool, True at pixels that are outside a query's mask.

    ``embedding`` [B,N,C] of the masks, ``pixels`` [B,C,S]. An empty mask blocks nothing.
    """
    # A negative logit is a probability below one half.
    blocked = embedding.to(pixels.dtype) @ pixels < 0
    return blocked & ~blocked.all(-1, keepdim=True)
