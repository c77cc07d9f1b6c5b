"""Conditional DETR: every query attends around a learned reference point.

(Meng et al., ICCV 2021, arXiv 2108.06152)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, init_xavier
from groupdetr.errors import UsageError
from groupdetr.groups import GROUP_ATTENTIONS
from groupdetr.modeling.attention.conditional_cross_attention import (
    ConditionalCrossAttention,
    ContentScaledPointEmbedding,
    FirstConditionalCrossAttention,
    ReferencePointEmbedding,
)
from groupdetr.modeling.attention.cross_attention import CrossAttention
from groupdetr.modeling.attention.self_attention import ConditionalSelfAttention, SelfAttention
from groupdetr.modeling.backbones.registry import BackboneOptions
from groupdetr.modeling.decoder import Decoder, DecoderLayer, ReferenceUpdate, keep_reference
from groupdetr.modeling.encoders.transformer_encoder import EncoderLayer, TransformerEncoder
from groupdetr.modeling.heads import BoxHead
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import FixedPositionEmbedding, PositionEmbedding
from groupdetr.modeling.queries.learned_queries import LearnedPoints
from groupdetr.modeling.queries.query_source import QuerySource


@dataclass(frozen=True)
class ConditionalDETR(Recipe):
    """Conditional DETR. Hyperparameters are those of the official code.

    The weights of the terms are those of the paper, Sec. 4.1.
    """

    dilated: bool = False  # DC5: the last stage of the backbone keeps stride 16
    encoder_layers: int = 6
    dim_feedforward: int = 2048  # width of the feed-forward networks
    temperature: float = 10000.0  # of the image's position embedding
    offset: float = 0.0  # shift of the image's position embedding, in pixels of the feature map
    eps: float = 1e-5  # of the inverse sigmoid
    # The function of `groupdetr.modeling.decoder` that turns predictions into the next reference
    reference_update: str = "keep_reference"

    # Those functions that serve, by their names
    reference_updates: ClassVar[Mapping[str, ReferenceUpdate]] = {"keep_reference": keep_reference}

    def choices(self) -> dict[str, Mapping[str, Callable[..., Any]]]:
        return {**super().choices(), "reference_update": self.reference_updates}

    @property
    def num_maps(self) -> tuple[int, int]:
        return 1, 1

    def backbone_options(self) -> BackboneOptions:
        options = super().backbone_options()
        if not self.dilated:
            return options
        if self.strides not in ((16,), (32,)):
            raise UsageError(
                "a dilated backbone (DC5) has its last map at stride 16 in place of 32, and "
                f"strides is {list(self.strides)}",
                remedy="set strides=[16] or dilated=false",
            )
        return replace(options, strides=(16,), dilated=True)

    def build_encoder(self, in_channels: list[int]) -> TransformerEncoder:
        layers = [self.encoder_layer() for _ in range(self.encoder_layers)]
        init_xavier(layer.feed_forward for layer in layers)
        position_embedding = self.token_position_embedding()
        init_xavier([position_embedding])
        return TransformerEncoder(
            in_channels[-1],
            layers,
            position_embedding,
            self.temperature,
            self.offset,
            self.recompute,
        )

    def encoder_layer(self) -> EncoderLayer:
        attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        return EncoderLayer(attention, self.feed_forward(), self.channels, self.dropout)

    def token_position_embedding(self) -> PositionEmbedding:
        """Return what every encoder layer adds to its tokens."""
        return FixedPositionEmbedding()

    def feed_forward(self) -> FeedForward:
        return FeedForward(self.channels, self.dim_feedforward, self.dropout)

    def build_queries(self) -> QuerySource:
        queries = LearnedPoints(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )
        init_xavier([queries.ref_point_head])
        return queries

    def build_decoder(self) -> Decoder:
        cross_attentions = []
        for i, query_sine_embed in enumerate(self.query_sine_embeds()):
            cross_attentions.append(self.cross_attention(i, query_sine_embed))
        layers = [self.decoder_layer(cross_attention) for cross_attention in cross_attentions]
        position_embedding = self.query_position_embedding()
        init_xavier([*layers, position_embedding])
        head = BoxHead(self.channels, self.num_classes, self.eps)
        return Decoder(
            layers,
            [position_embedding] * len(layers),
            [head] * len(layers),
            nn.LayerNorm(self.channels),
            self.reference_updates[self.reference_update],
            self.recompute,
        )

    def query_sine_embeds(self) -> Sequence[nn.Module]:
        """Return the sine embedding of the reference for the cross-attention of every layer."""
        return self.reference_point_embeddings()

    def reference_point_embeddings(self) -> list[ReferencePointEmbedding]:
        """Return the sine embedding of the reference point for every layer.

        From the second layer on, it is scaled by an MLP of the content, which layers share.
        """
        scale = MLP(self.channels, self.channels, self.channels, num_layers=2)
        embeddings = [ReferencePointEmbedding()]
        for _ in range(1, self.decoder_layers):
            embeddings.append(ContentScaledPointEmbedding(scale))
        return embeddings

    def cross_attention(self, layer: int, query_sine_embed: nn.Module) -> CrossAttention:
        """Return the cross-attention of decoder layer ``layer``."""
        kind = FirstConditionalCrossAttention if layer == 0 else ConditionalCrossAttention
        return kind(self.channels, self.num_heads, self.dropout, query_sine_embed)

    def query_position_embedding(self) -> PositionEmbedding:
        """Return the position embedding of the queries in self-attention."""
        return FixedPositionEmbedding()

    def decoder_layer(self, cross_attention: CrossAttention) -> DecoderLayer:
        self_attention = ConditionalSelfAttention(self.channels, self.num_heads, self.dropout)
        return DecoderLayer(
            GROUP_ATTENTIONS[self.group_attention],
            self_attention,
            cross_attention,
            self.feed_forward(),
            self.channels,
            self.dropout,
        )

    def terms(self) -> list[Term]:
        return [Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)]
