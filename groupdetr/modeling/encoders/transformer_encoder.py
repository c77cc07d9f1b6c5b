"""DETR's encoder: one feature map, projected to tokens that look at each other."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.mlp import FeedForward
from groupdetr.ops.position import image_embedding
from groupdetr.structures.memory import Memory


class EncoderLayer(nn.Module):
    """Self-attention over all tokens, then a feed-forward network, each followed by a norm. [B,S,C] -> [B,S,C]"""

    def __init__(
        self, attention: SelfAttention, feed_forward: FeedForward, channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, unseen: Tensor | None) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, position, unseen)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class TransformerEncoder(nn.Module):
    """Feature maps, of which the coarsest is used, and the images' padding [B,H,W] -> `Memory`.

    ``place`` is the position embedding that a layer adds to its tokens, a `Given` or a `Scaled` one. ``temperature``
    and ``offset`` are those of `image_embedding`.
    """

    def __init__(
        self,
        in_channels: int,
        layers: list[EncoderLayer],
        place: nn.Module,
        temperature: float,
        offset: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.layers, self.place = nn.ModuleList(layers), place
        self.projection = nn.Conv2d(in_channels, layers[0].norm1.normalized_shape[0], kernel_size=1)
        self.temperature, self.offset, self.recompute = temperature, offset, recompute

    def forward(self, features: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        return self.encode(self.project(features), padding, padded)

    def project(self, features: list[Tensor]) -> list[Tensor]:
        return [self.projection(features[-1])]

    def encode(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        """Of maps that are projected."""
        (projected,) = maps
        shape = projected.shape[-2:]
        padding = F.interpolate(padding[:, None].float(), size=shape)[:, 0].bool()
        position = image_embedding(padding, projected.shape[1], self.temperature, self.offset).to(
            projected.dtype
        )
        tokens = projected.flatten(2).transpose(1, 2)
        memory = Memory(
            tokens, position.flatten(1, 2), padding.flatten(1), ((shape[0], shape[1]),), padded
        )
        for layer in self.layers:
            memory.tokens = self.run(layer, memory)
        return memory

    def run(self, layer: nn.Module, memory: Memory) -> Tensor:
        inputs = memory.tokens, self.place(memory.position, memory.tokens), memory.unseen
        return (
            checkpoint(layer, *inputs, use_reentrant=False)
            if self.recompute and self.training
            else layer(*inputs)
        )
