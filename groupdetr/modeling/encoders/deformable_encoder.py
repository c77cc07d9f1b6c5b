"""Deformable DETR's encoder: tokens of several levels, each of which looks at a few points of all levels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groupdetr.modeling.attention.deformable_attention import DeformableAttention
from groupdetr.modeling.mlp import FeedForward
from groupdetr.ops.position import image_embedding
from groupdetr.structures.memory import Memory


class DeformableEncoderLayer(nn.Module):
    """Deformable attention, then a feed-forward network, each followed by a norm. [B,S,C] -> [B,S,C]"""

    def __init__(
        self,
        attention: DeformableAttention,
        feed_forward: FeedForward,
        channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, points: Tensor, memory: Memory) -> Tensor:
        """``points`` [B,S,L,2]: where every token is, on every level. The memory's own tokens are those before."""
        x = self.norm1(x + self.dropout(self.attention(x, memory.position, points, memory)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DeformableEncoder(nn.Module):
    """Feature maps of L levels and the images' padding [B,H,W] -> `Memory`.

    ``temperature`` and ``offset`` are those of `image_embedding`.
    """

    def __init__(
        self,
        pyramid: nn.Module,
        layers: list[DeformableEncoderLayer],
        num_levels: int,
        temperature: float,
        offset: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.project, self.layers = pyramid, nn.ModuleList(layers)
        channels = layers[0].norm1.normalized_shape[0]
        self.level = nn.Parameter(torch.randn(num_levels, channels))
        self.temperature, self.offset, self.recompute = temperature, offset, recompute

    def forward(self, features: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        return self.encode(self.project(features), padding, padded)

    def encode(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        """Of maps that are projected."""
        memory = self.flat(maps, padding, padded)
        points = token_points(memory)
        for layer in self.layers:
            memory = replace(memory, tokens=self.run(layer, memory.tokens, points, memory))
        return memory

    def flat(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        """All levels end to end."""
        paddings = [
            F.interpolate(padding[:, None].float(), size=x.shape[-2:])[:, 0].bool() for x in maps
        ]
        positions = [
            image_embedding(p, x.shape[1], self.temperature, self.offset).to(x.dtype) + level
            for p, x, level in zip(paddings, maps, self.level)
        ]
        return Memory(
            torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1),
            torch.cat([position.flatten(1, 2) for position in positions], 1),
            torch.cat([p.flatten(1) for p in paddings], 1),
            tuple((x.shape[2], x.shape[3]) for x in maps),
            padded,
        )

    def run(self, layer: nn.Module, *inputs: Tensor | Memory) -> Tensor:
        return (
            checkpoint(layer, *inputs, use_reentrant=False)
            if self.recompute and self.training
            else layer(*inputs)
        )


def token_points(memory: Memory) -> Tensor:
    """[B,S,L,2]: the centre of every token x, y in the image, and so on every level, padding included."""
    centres = token_centres(memory)
    return centres.unsqueeze(2) * memory.valid_ratios.unsqueeze(1)


def token_centres(memory: Memory) -> Tensor:
    """[B,S,2] x, y in [0,1] of the image without its padding; beyond 1 in the padding."""
    grids = []
    for (height, width), size in zip(memory.shapes, memory.valid_sizes.unbind(1)):
        y, x = torch.meshgrid(
            torch.arange(height, device=size.device) + 0.5,
            torch.arange(width, device=size.device) + 0.5,
            indexing="ij",
        )
        grids.append(torch.stack([x, y], -1).flatten(0, 1) / size.unsqueeze(1))
    return torch.cat(grids, 1)
