"""Looking at the image: DETR's cross-attention, in which every query sees every token (Carion et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from groupdetr.groups import end_to_end
from groupdetr.modeling.attention.multihead import View, attend, split_heads
from groupdetr.modeling.attention.self_attention import projections
from groupdetr.structures.memory import Memory


class DenseCrossAttention(nn.Module):
    """Queries [B,K,N,C] look at the whole memory -> [B,K,N,C]; where they are is known by their position alone."""

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value, self.output = projections(channels)

    def aim(self, content: Tensor, reference: Tensor) -> Tensor:
        del content
        return reference

    def view(self, memory: Memory) -> View:
        """Keys and values [B,heads,S,C/heads]."""
        key, value = self.key(memory.tokens + memory.position), self.value(memory.tokens)
        return split_heads(key, self.num_heads), split_heads(value, self.num_heads)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        aim: Tensor,
        memory: Memory,
        view: View | None = None,
    ) -> Tensor:
        del aim
        key, value = view or self.view(memory)
        query = split_heads(self.query(end_to_end(content + position)), self.num_heads)
        seen = attend(query, key, value, memory.unseen, self.dropout if self.training else 0.0)
        return self.output(seen).reshape(content.shape)
