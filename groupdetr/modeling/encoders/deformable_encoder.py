"""Deformable DETR's encoder: tokens of several levels attend to a few points of all levels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.attention.deformable_attention import DeformableAttention
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.gradient_checkpointing import run_layer
from groupdetr.modeling.mlp import FeedForward
from groupdetr.ops.position import image_embedding
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory


class DeformableEncoderLayer(nn.Module):
    """Deformable attention, then a feed-forward network, each followed by a norm.

    [B,S,C] -> [B,S,C].
    """

    def __init__(
        self,
        attention: DeformableAttention,
        feed_forward: FeedForward,
        channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """``reference`` [B,S,L,2]: the centre of every token on every level.

        ``memory`` holds the same tokens as ``x``.
        """
        attended = self.attention(x, memory.position, reference, memory)
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DeformableEncoder(Encoder[Images]):
    """Feature maps [B,C_l,H_l,W_l] of a backbone -> `Memory` with L levels.

    ``projection`` turns them into L maps of one width. ``temperature`` and ``offset`` are those of
    `image_embedding`. ``recompute`` turns on gradient checkpointing.
    """

    def __init__(
        self,
        projection: nn.Module,
        layers: list[DeformableEncoderLayer],
        num_levels: int,
        temperature: float,
        offset: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.project = projection
        self.layers = nn.ModuleList(layers)
        channels = layers[0].norm1.normalized_shape[0]
        self.level_embed = nn.Parameter(torch.randn(num_levels, channels))
        self.temperature = temperature
        self.offset = offset
        self.recompute = recompute

    def set_position_embedding(self, temperature: float, offset: float) -> None:
        self.temperature = temperature
        self.offset = offset

    def forward(self, features: list[Tensor], images: Images) -> Memory:
        return self.encode(self.project(features), images.padding, images.padded)

    def encode(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        """Encode L projected maps [B,C,H_l,W_l]. ``padding`` [B,H,W] is that of the images."""
        memory = self.flatten_levels(maps, padding, padded)
        reference = token_references(memory)
        recompute = self.recompute and self.training
        for layer in self.layers:
            tokens = run_layer(layer, memory.tokens, reference, memory, recompute=recompute)
            memory = replace(memory, tokens=tokens)
        return memory

    def flatten_levels(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        """Return the tokens of all levels, one level after the other.

        Their position embedding is that of the image plus the embedding of their level.
        """
        tokens, positions, paddings = [], [], []
        for x, level_embed in zip(maps, self.level_embed):
            level_padding = F.interpolate(padding[:, None].float(), size=x.shape[-2:])[:, 0].bool()
            position = image_embedding(level_padding, x.shape[1], self.temperature, self.offset).to(
                x.dtype
            )
            tokens.append(x.flatten(2).transpose(1, 2))
            positions.append((position + level_embed).flatten(1, 2))
            paddings.append(level_padding.flatten(1))
        return Memory.from_tokens(
            tokens=torch.cat(tokens, 1),
            position=torch.cat(positions, 1),
            padding=torch.cat(paddings, 1),
            shapes=tuple((x.shape[2], x.shape[3]) for x in maps),
            padded=padded,
        )


def token_references(memory: Memory) -> Tensor:
    """Return the centre of every token, x and y in [0,1] of each padded level: [B,S,L,2]."""
    centres = token_centres(memory)
    return centres.unsqueeze(2) * memory.valid_ratios.unsqueeze(1)


def token_centres(memory: Memory) -> Tensor:
    """Return the centre of every token, x and y in [0,1] of the image without padding: [B,S,2].

    Centres of tokens in the padding are greater than 1.
    """
    centres = []
    for (height, width), valid_size in zip(memory.shapes, memory.valid_sizes.unbind(1)):
        rows = torch.arange(height, device=valid_size.device) + 0.5
        columns = torch.arange(width, device=valid_size.device) + 0.5
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        level_centres = torch.stack([x, y], -1).flatten(0, 1)  # [H*W,2] in tokens
        centres.append(level_centres / valid_size.unsqueeze(1))
    return torch.cat(centres, 1)
