"""Looking at the image: conditional cross-attention (Conditional DETR, Meng et al. 2021, Sec. 3.3).

Content and place are compared apart: in every head a query is [content ; place] and a key is [content ; place], each
half as wide as the head's value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupdetr.attention.multihead import attend, split_heads
from groupdetr.groups import end_to_end
from groupdetr.mlp import MLP
from groupdetr.ops.position import sine_embedding
from groupdetr.structures import Memory


class ConditionalCrossAttention(nn.Module):
    """Queries [B,K,N,C] look at the memory where they `aim` [B,K,N,C] -> [B,K,N,C].

    ``scale`` is the network T that turns what a query knows into how wide it looks (Eq. 5 there); decoder layers
    share one.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float, scale: nn.Module) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.scale = num_heads, dropout, scale
        self.query_content, self.query_place = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.key_content, self.key_place = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.output = nn.Linear(channels, channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.output.bias)

    def forward(self, content: Tensor, position: Tensor, aim: Tensor, memory: Memory) -> Tensor:
        key_place = self.key_place(memory.position)
        query, key = self.contents(content, position, memory.tokens, key_place)
        query = self.beside(end_to_end(query), end_to_end(self.query_place(aim)))
        key = self.beside(key, key_place)
        value = split_heads(self.value(memory.tokens), self.num_heads)
        seen = attend(query, key, value, memory.padding, self.dropout if self.training else 0.0)
        return self.output(seen).reshape(content.shape)

    @torch.no_grad()
    def start_around_the_reference(self, gain: float) -> None:
        """Let queries look around their reference point from the first step on, instead of learning to.

        With equal projections of both places, attention starts as the likeness of their sine embeddings, the sharper
        the larger ``gain``; and T starts at one. Not in the paper: a start for trainings of minutes.
        """
        self.query_place.weight.copy_(self.key_place.weight).mul_(gain)
        self.key_place.weight.mul_(gain)
        if isinstance(self.scale, MLP):
            nn.init.zeros_(self.scale.layers[-1].weight)  # type: ignore[arg-type]
            nn.init.ones_(self.scale.layers[-1].bias)  # type: ignore[arg-type]

    def contents(self, content: Tensor, position: Tensor, tokens: Tensor, key_place: Tensor) -> tuple[Tensor, Tensor]:
        """The content halves of queries [B,K,N,C] and keys [B,S,C]."""
        del position, key_place  # the first layer's alone
        return self.query_content(content), self.key_content(tokens)

    def aim(self, content: Tensor, reference: Tensor) -> Tensor:
        """Where a query looks, [B,K,N,C]: the embedding of its reference point, scaled by what it knows."""
        return sine_embedding(reference[..., :2], content.shape[-1] // 2) * self.scale(content)

    def beside(self, content: Tensor, place: Tensor) -> Tensor:
        """Content and place [B,N,C] concatenated inside every head: [B,heads,N,2*C/heads]."""
        halves = (content, place.expand_as(content))
        return torch.cat([split_heads(half, self.num_heads) for half in halves], dim=-1)


class FirstConditionalCrossAttention(ConditionalCrossAttention):
    """The first decoder layer's: queries know nothing yet, so their position stands in for content and scale is 1."""

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__(channels, num_heads, dropout, scale=nn.Identity())
        self.query_position = nn.Linear(channels, channels)

    def contents(self, content: Tensor, position: Tensor, tokens: Tensor, key_place: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_content(content) + self.query_position(position), self.key_content(tokens) + key_place

    def aim(self, content: Tensor, reference: Tensor) -> Tensor:
        return sine_embedding(reference[..., :2], content.shape[-1] // 2).to(content.dtype)
