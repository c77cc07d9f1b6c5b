"""Conditional DETR (Meng et al., ICCV 2021, arXiv 2108.06152): queries that look around a learned point."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from groupdetr.attention.cross_attention import ConditionalCrossAttention, FirstConditionalCrossAttention
from groupdetr.attention.self_attention import ConditionalSelfAttention
from groupdetr.backbone import Backbone, resnet50
from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.decoder import Decoder, DecoderLayer, keep
from groupdetr.detectors.recipe import Recipe, xavier
from groupdetr.encoders.transformer import EncoderLayer, TransformerEncoder
from groupdetr.heads import BoxHead
from groupdetr.mlp import MLP, FeedForward
from groupdetr.queries.learned import LearnedPoints


@dataclass(frozen=True)
class ConditionalDETR(Recipe):
    """Numbers as in the official code; weights of the terms from its Sec. 4.1."""

    dilated: bool = False  # DC5
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden: int = 2048  # of the feed-forward networks
    temperature: float = 10000.0  # of the image's position embedding
    offset: float = 0.0  # and its shift, in pixels of the feature map
    eps: float = 1e-5  # of the inverse sigmoid

    def backbone(self) -> Backbone:
        return resnet50(self.pretrained_backbone, self.dilated)

    def encoder(self, in_channels: list[int]) -> TransformerEncoder:
        layers = [
            EncoderLayer(self.channels, self.num_heads, self.hidden, self.dropout) for _ in range(self.encoder_layers)
        ]
        xavier(layer.feed_forward for layer in layers)
        return TransformerEncoder(in_channels[-1], layers, self.temperature, self.offset, self.recompute)

    def queries(self) -> LearnedPoints:
        queries = LearnedPoints(self.num_groups, self.num_queries, self.channels, self.inference_group)
        xavier([queries.point])
        return queries

    def decoder(self) -> Decoder:
        scale = MLP(self.channels, self.channels, self.channels, num_layers=2)
        looks: list[nn.Module] = [FirstConditionalCrossAttention(self.channels, self.num_heads, self.dropout)]
        for _ in range(1, self.decoder_layers):
            looks.append(ConditionalCrossAttention(self.channels, self.num_heads, self.dropout, scale))
        layers = [self.layer(look) for look in looks]
        xavier(layers)
        head = BoxHead(self.channels, self.num_classes, self.eps)
        return Decoder(layers, [head] * len(layers), nn.LayerNorm(self.channels), keep, self.recompute)

    def layer(self, cross_attention: nn.Module) -> DecoderLayer:
        self_attention = ConditionalSelfAttention(self.channels, self.num_heads, self.dropout)
        feed_forward = FeedForward(self.channels, self.hidden, self.dropout)
        return DecoderLayer(
            self.compete, self_attention, cross_attention, feed_forward, self.channels, self.dropout
        )  # fmt: skip

    def terms(self) -> list[Term]:
        return [Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)]
