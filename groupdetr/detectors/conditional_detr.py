"""Conditional DETR (Meng et al., ICCV 2021, arXiv 2108.06152): queries that look around a learned point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, xavier
from groupdetr.modeling.attention.conditional_cross_attention import (
    ConditionalCrossAttention,
    FirstConditionalCrossAttention,
    PointAim,
    ScaledAim,
)
from groupdetr.modeling.attention.self_attention import ConditionalSelfAttention, SelfAttention
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.resnet import resnet50
from groupdetr.modeling.decoder import Decoder, DecoderLayer, keep
from groupdetr.modeling.encoders.transformer_encoder import EncoderLayer, TransformerEncoder
from groupdetr.modeling.heads import BoxHead
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import Given
from groupdetr.modeling.queries.learned_queries import LearnedPoints


@dataclass(frozen=True)
class ConditionalDETR(Recipe):
    """Numbers as in the official code; weights of the terms from its Sec. 4.1."""

    dilated: bool = False  # DC5
    encoder_layers: int = 6
    hidden: int = 2048  # of the feed-forward networks
    temperature: float = 10000.0  # of the image's position embedding
    offset: float = 0.0  # and its shift, in pixels of the feature map
    eps: float = 1e-5  # of the inverse sigmoid

    update = staticmethod(keep)

    def backbone(self) -> Backbone:
        return resnet50(self.pretrained_backbone, self.dilated)

    def encoder(self, in_channels: list[int]) -> TransformerEncoder:
        layers = [self.encoder_layer() for _ in range(self.encoder_layers)]
        xavier(layer.feed_forward for layer in layers)
        xavier([place := self.token_place()])
        return TransformerEncoder(
            in_channels[-1], layers, place, self.temperature, self.offset, self.recompute
        )

    def encoder_layer(self) -> EncoderLayer:
        attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        return EncoderLayer(attention, self.feed_forward(), self.channels, self.dropout)

    def token_place(self) -> nn.Module:
        return Given()

    def feed_forward(self) -> FeedForward:
        return FeedForward(self.channels, self.hidden, self.dropout)

    def queries(self) -> nn.Module:
        queries = LearnedPoints(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )
        xavier([queries.point])
        return queries

    def decoder(self) -> Decoder:
        kinds = [
            FirstConditionalCrossAttention,
            *[ConditionalCrossAttention] * (self.decoder_layers - 1),
        ]
        looks = [
            kind(self.channels, self.num_heads, self.dropout, aim)
            for kind, aim in zip(kinds, self.aims())
        ]
        layers = [self.decoder_layer(look) for look in looks]
        xavier([*layers, place := self.query_place()])
        head = BoxHead(self.channels, self.num_classes, self.eps)
        places, heads = [place] * len(layers), [head] * len(layers)
        return Decoder(
            layers, places, heads, nn.LayerNorm(self.channels), self.update, self.recompute
        )

    def aims(self) -> Sequence[nn.Module]:
        """Where the queries of each layer look."""
        return self.point_aims()

    def point_aims(self) -> list[PointAim]:
        """Scaled from the second layer on, by one network."""
        scale = MLP(self.channels, self.channels, self.channels, num_layers=2)
        return [PointAim(), *(ScaledAim(scale) for _ in range(1, self.decoder_layers))]

    def query_place(self) -> nn.Module:
        return Given()

    def decoder_layer(self, cross_attention: nn.Module) -> DecoderLayer:
        self_attention = ConditionalSelfAttention(self.channels, self.num_heads, self.dropout)
        return DecoderLayer(
            self.compete,
            self_attention,
            cross_attention,
            self.feed_forward(),
            self.channels,
            self.dropout,
        )

    def terms(self) -> list[Term]:
        return [Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)]
