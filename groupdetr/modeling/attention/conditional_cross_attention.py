"""Looking at the image: conditional cross-attention (Conditional DETR, Meng et al. 2021, Sec. 3.3).

Content and place are compared apart: in every head a query is [content ; place] and a key is [content ; place], each
half as wide as the head's value. Where a query looks is an aim, a part of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupdetr.groups import end_to_end
from groupdetr.modeling.attention.multihead import View, attend, split_heads
from groupdetr.modeling.linear import Linear
from groupdetr.modeling.mlp import MLP
from groupdetr.ops.position import sine_embedding
from groupdetr.structures.memory import Memory


class PointAim(nn.Module):
    """Where a query looks, [B,K,N,C]: the sine embedding of its reference point (or of its box's centre)."""

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        return sine_embedding(reference[..., :2], content.shape[-1] // 2).to(content.dtype)


class ScaledAim(PointAim):
    """Scaled by what the query knows: T of Conditional DETR's Eq. 5, a network that decoder layers share."""

    def __init__(self, scale: MLP) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        return super().forward(content, reference) * self.scale(content)


class ModulatedAim(nn.Module):
    """As ``point`` aims, and the narrower the smaller the query's box is (DAB-DETR, Liu et al. 2022, Eq. 6).

    ``size`` tells what width and height the query reckons with; decoder layers share it. The likeness in x is
    weighted by that width over the width of the box, and so is y by the heights.
    """

    def __init__(self, point: PointAim, size: MLP) -> None:
        super().__init__()
        self.point, self.size = point, size

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        halves = self.point(content, reference).unflatten(-1, (2, -1))  # y, x
        expected = self.size(content).to(reference.dtype).sigmoid()  # w, h
        return (halves * (expected / reference[..., 2:]).flip(-1).unsqueeze(-1)).flatten(-2)


class ConditionalCrossAttention(nn.Module):
    """Queries [B,K,N,C] look at the memory where they `aim` [B,K,N,C] -> [B,K,N,C]."""

    def __init__(self, channels: int, num_heads: int, dropout: float, aim: nn.Module) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.aim = num_heads, dropout, aim
        self.query_content, self.query_place = (
            Linear(channels, channels),
            Linear(channels, channels),
        )
        self.key_content, self.key_place = Linear(channels, channels), Linear(channels, channels)
        self.value, self.output = Linear(channels, channels), Linear(channels, channels)
        nn.init.zeros_(self.output.bias)

    def view(self, memory: Memory) -> View:
        """Keys [B,heads,S,2*C/heads] and values [B,heads,S,C/heads]."""
        place = self.key_place(memory.position)
        key = self.beside(self.content_of_tokens(memory.tokens, place), place)
        return key, split_heads(self.value(memory.tokens), self.num_heads)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        aim: Tensor,
        memory: Memory,
        view: View | None = None,
    ) -> Tensor:
        key, value = view or self.view(memory)
        content_of_queries = self.content_of_queries(content, position)
        query = self.beside(end_to_end(content_of_queries), end_to_end(self.query_place(aim)))
        seen = attend(query, key, value, memory.unseen, self.dropout if self.training else 0.0)
        return self.output(seen).reshape(content.shape)

    @torch.no_grad()
    def start_around_the_reference(self, gain: float) -> None:
        """Let queries look around their reference point from the first step on, instead of learning to.

        With equal projections of both places, attention starts as the likeness of their sine embeddings, the sharper
        the larger ``gain``; and T starts at one. Not in the paper: a start for trainings of minutes.
        """
        self.query_place.weight.copy_(self.key_place.weight).mul_(gain)
        self.key_place.weight.mul_(gain)
        for aim in self.aim.modules():
            if isinstance(aim, ScaledAim):
                aim.scale.start_at(1.0)

    def content_of_queries(self, content: Tensor, position: Tensor) -> Tensor:
        """The content half of queries [B,K,N,C]."""
        del position  # the first layer's alone
        return self.query_content(content)

    def content_of_tokens(self, tokens: Tensor, place: Tensor) -> Tensor:
        """The content half of keys [B,S,C]."""
        del place
        return self.key_content(tokens)

    def beside(self, content: Tensor, place: Tensor) -> Tensor:
        """Content and place [B,N,C] concatenated inside every head: [B,heads,N,2*C/heads]."""
        halves = (content, place.expand_as(content))
        return torch.cat([split_heads(half, self.num_heads) for half in halves], dim=-1)


class FirstConditionalCrossAttention(ConditionalCrossAttention):
    """The first decoder layer's: queries know nothing yet, so their position stands in for content."""

    def __init__(self, channels: int, num_heads: int, dropout: float, aim: nn.Module) -> None:
        super().__init__(channels, num_heads, dropout, aim)
        self.query_position = Linear(channels, channels)

    def content_of_queries(self, content: Tensor, position: Tensor) -> Tensor:
        return self.query_content(content) + self.query_position(position)

    def content_of_tokens(self, tokens: Tensor, place: Tensor) -> Tensor:
        return self.key_content(tokens) + place
