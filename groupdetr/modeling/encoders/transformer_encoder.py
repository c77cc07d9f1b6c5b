"""DETR's encoder: one feature map becomes tokens that attend to each other."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.gradient_checkpointing import run_layer
from groupdetr.modeling.mlp import FeedForward
from groupdetr.modeling.position_embedding import PositionEmbedding
from groupdetr.ops.position import image_embedding
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory


class EncoderLayer(nn.Module):
    """Self-attention over all tokens, then a feed-forward network, each followed by a norm.

    [B,S,C] -> [B,S,C].
    """

    def __init__(
        self, attention: SelfAttention, feed_forward: FeedForward, channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        attended = self.attention(x, position, key_padding_mask)
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class TransformerEncoder(Encoder[Images]):
    """The coarsest feature map [B,C_l,H_l,W_l] of a list -> `Memory` with one level.

    ``position_embedding`` is what every layer adds to its tokens: a `FixedPositionEmbedding` or a
    `ContentScaledPositionEmbedding`. ``temperature`` and ``offset`` are those of
    `image_embedding`. ``recompute`` turns on gradient checkpointing.
    """

    def __init__(
        self,
        in_channels: int,
        layers: list[EncoderLayer],
        position_embedding: PositionEmbedding,
        temperature: float,
        offset: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.position_embedding = position_embedding
        channels = layers[0].norm1.normalized_shape[0]
        self.projection = nn.Conv2d(in_channels, channels, kernel_size=1)
        self.temperature = temperature
        self.offset = offset
        self.recompute = recompute

    def set_position_embedding(self, temperature: float, offset: float) -> None:
        self.temperature = temperature
        self.offset = offset

    def forward(self, features: list[Tensor], images: Images) -> Memory:
        return self.encode(self.project(features), images.padding, images.padded)

    def project(self, features: list[Tensor]) -> list[Tensor]:
        """Project the coarsest map to the width of the transformer, [B,C,H,W]."""
        return [self.projection(features[-1])]

    def encode(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        """Encode a projected map [B,C,H,W]. ``padding`` [B,H',W'] is that of the images."""
        (projected,) = maps
        height, width = projected.shape[-2:]
        padding = F.interpolate(padding[:, None].float(), size=(height, width))[:, 0].bool()
        channels = projected.shape[1]
        position = image_embedding(padding, channels, self.temperature, self.offset)
        memory = Memory.from_tokens(
            tokens=projected.flatten(2).transpose(1, 2),
            position=position.to(projected.dtype).flatten(1, 2),
            padding=padding.flatten(1),
            shapes=((height, width),),
            padded=padded,
        )
        recompute = self.recompute and self.training
        for layer in self.layers:
            x = memory.tokens
            position = self.position_embedding(memory.position, x)
            memory.tokens = run_layer(
                layer, x, position, memory.key_padding_mask, recompute=recompute
            )
        return memory
