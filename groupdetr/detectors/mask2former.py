"""Mask2Former for instance segmentation: queries attend inside their predicted masks.

(Cheng et al., CVPR 2022, arXiv 2112.01527)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from groupdetr.criterion.classification import Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import Dice, PointCrossEntropy, PointSampledMasks
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, init_xavier
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.attention.deformable_attention import DeformableAttention
from groupdetr.modeling.attention.masked_cross_attention import MaskedCrossAttention
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.backbones.registry import NONE_FROZEN, BackboneOptions
from groupdetr.modeling.decoder import CrossAttentionFirstLayer, Decoder, use_mask
from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder, DeformableEncoderLayer
from groupdetr.modeling.encoders.feature_projection import MultiScaleProjection
from groupdetr.modeling.encoders.pixel_decoder import PixelDecoder
from groupdetr.modeling.heads import MaskHead
from groupdetr.modeling.mlp import FeedForward
from groupdetr.modeling.position_embedding import FixedPositionEmbedding
from groupdetr.modeling.queries.learned_queries import LearnedContents
from groupdetr.modeling.queries.query_source import QuerySource


@dataclass(frozen=True)
class Mask2Former(Recipe):
    """Mask2Former. Hyperparameters are those of its published configuration.

    It is the one for instances of COCO with ResNet-50.
    """

    num_classes: int = 80
    num_queries: int = 100
    strides: tuple[int, ...] = (4, 8, 16, 32)
    frozen_stages: int = NONE_FROZEN
    dropout: float = 0.0
    encoder_layers: int = 6
    decoder_layers: int = 9
    encoder_dim_feedforward: int = 1024  # width of the encoder's feed-forward networks
    dim_feedforward: int = 2048  # width of the decoder's feed-forward networks
    num_levels: int = 3
    num_points: int = 4  # sampling points of an attention head of the encoder on every level
    num_samples: int = 112 * 112  # points of an image where masks are compared
    temperature: float = 10000.0  # of the image's position embedding
    offset: float = 0.0  # shift of the image's position embedding, in pixels of the feature map

    @property
    def pair_builder(self) -> PointSampledMasks:
        """The points at which predicted and annotated masks are compared."""
        return PointSampledMasks(self.num_samples)

    @property
    def num_maps(self) -> tuple[int, int]:
        # The finest map is for the masks. Every level needs a map: the projection would append
        # those that it computes after the finest one, and levels go from coarse to fine.
        return 1 + self.num_levels, 1 + self.num_levels

    def backbone_options(self) -> BackboneOptions:
        # Images are padded to a multiple of the stride of the coarsest level.
        return replace(super().backbone_options(), multiple=self.strides[-1])

    def build_encoder(self, in_channels: list[int]) -> PixelDecoder:
        finest, *coarser = in_channels
        # The encoder's levels go from coarse to fine.
        feature_projection = MultiScaleProjection(coarser[::-1], self.channels, self.num_levels)
        layers = [self.encoder_layer() for _ in range(self.encoder_layers)]
        encoder = DeformableEncoder(
            feature_projection,
            layers,
            self.num_levels,
            self.temperature,
            self.offset,
            self.recompute,
        )
        return PixelDecoder(encoder, finest, self.pair_builder.num_sampled)

    def encoder_layer(self) -> DeformableEncoderLayer:
        attention = DeformableAttention(
            self.channels, self.num_heads, self.num_levels, self.num_points
        )
        feed_forward = self.feed_forward(self.encoder_dim_feedforward)
        return DeformableEncoderLayer(attention, feed_forward, self.channels, self.dropout)

    def feed_forward(self, dim_feedforward: int) -> FeedForward:
        network = FeedForward(self.channels, dim_feedforward, self.dropout)
        init_xavier([network])
        return network

    def build_queries(self) -> QuerySource:
        return LearnedContents(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )

    def build_decoder(self) -> Decoder:
        """Return the decoder. Each layer attends to one level; levels go from coarse to fine.

        After the finest level, the next layer attends to the coarsest again.
        """
        layers = [self.decoder_layer(i % self.num_levels) for i in range(self.decoder_layers)]
        head = MaskHead(self.channels, self.num_classes)
        return Decoder(
            layers,
            [FixedPositionEmbedding()] * self.decoder_layers,
            [head] * self.decoder_layers,
            nn.LayerNorm(self.channels),
            use_mask,
            self.recompute,
            predict_before_first_layer=True,
        )

    def decoder_layer(self, level: int) -> CrossAttentionFirstLayer:
        self_attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        cross_attention = MaskedCrossAttention(self.channels, self.num_heads, self.dropout, level)
        return CrossAttentionFirstLayer(
            GROUP_ATTENTIONS[self.group_attention],
            self_attention,
            cross_attention,
            self.feed_forward(self.dim_feedforward),
            self.channels,
            self.dropout,
        )

    def terms(self) -> list[Term]:
        return [Softmax(2.0, 2.0), PointCrossEntropy(5.0, 5.0), Dice(5.0, 5.0)]

    def criterion(self) -> SetCriterion:
        return SetCriterion(self.terms(), MATCHES[self.match], self.pair_builder)

    def no_weight_decay(self, network: nn.Module) -> Iterator[str]:
        """Yield the parameters of norms, of the queries, and of the decoder's level embedding."""
        for module_name, module in network.named_modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                for parameter_name, _ in module.named_parameters():
                    yield f"{module_name}.{parameter_name}"
        yield from ("queries.embedding", "queries.position", "encoder.level_embed")
