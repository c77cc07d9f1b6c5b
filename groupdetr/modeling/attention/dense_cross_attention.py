"""DETR's cross-attention, in which every query attends to every token (Carion et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from groupdetr.groups import flatten_groups
from groupdetr.modeling.attention.cross_attention import CrossAttention, KeysValues
from groupdetr.modeling.attention.multihead import dot_product_attention, split_heads
from groupdetr.modeling.attention.self_attention import attention_projections
from groupdetr.structures.memory import Memory


class DenseCrossAttention(CrossAttention):
    """Query = content + position, key = tokens + position, value = tokens.

    The reference points are not used, only the position embeddings.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_proj, self.key_proj, self.value_proj, self.output_proj = attention_projections(
            channels
        )

    def precompute_keys_values(self, memory: Memory) -> KeysValues:
        """Return keys and values, [B,heads,S,C/heads] each."""
        key = self.key_proj(memory.tokens + memory.position)
        value = self.value_proj(memory.tokens)
        return split_heads(key, self.num_heads), split_heads(value, self.num_heads)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Memory,
        keys_values: KeysValues | None = None,
    ) -> Tensor:
        key, value = keys_values or self.precompute_keys_values(memory)
        query = split_heads(self.query_proj(flatten_groups(content + position)), self.num_heads)
        dropout = self.dropout if self.training else 0.0
        attended = dot_product_attention(query, key, value, memory.key_padding_mask, dropout)
        return self.output_proj(attended).reshape(content.shape)
