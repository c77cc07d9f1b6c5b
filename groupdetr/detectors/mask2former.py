"""Mask2Former (Cheng et al., CVPR 2022, arXiv 2112.01527), for instances: queries that look inside their masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from groupdetr.criterion.classification import Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import AtPoints, Dice, PointEntropy
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, xavier
from groupdetr.modeling.attention.deformable_attention import DeformableAttention
from groupdetr.modeling.attention.masked_cross_attention import MaskedCrossAttention
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.resnet import resnet50
from groupdetr.modeling.decoder import LookFirstLayer, SpeakingDecoder, attend_mask
from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder, DeformableEncoderLayer
from groupdetr.modeling.encoders.feature_projection import Pyramid
from groupdetr.modeling.encoders.pixel_decoder import PixelDecoder
from groupdetr.modeling.heads import MaskHead
from groupdetr.modeling.mlp import FeedForward
from groupdetr.modeling.position_embedding import Given
from groupdetr.modeling.queries.learned_queries import LearnedContents

STRIDE = 32  # of the coarsest level: images are padded to a multiple of it


@dataclass(frozen=True)
class Mask2Former(Recipe):
    """Numbers as in the published configuration for instances of COCO with ResNet-50."""

    num_classes: int = 80
    num_queries: int = 100
    dropout: float = 0.0
    encoder_layers: int = 6
    decoder_layers: int = 9
    encoder_hidden: int = 1024  # of the feed-forward networks
    hidden: int = 2048
    num_levels: int = 3
    num_points: int = 4  # of a level, that a head of the encoder looks at
    num_samples: int = 112 * 112  # points of an image where masks are compared
    temperature: float = 10000.0  # of the image's position embedding
    offset: float = 0.0  # and its shift, in pixels of the feature map

    @property
    def pairing(self) -> AtPoints:
        return AtPoints(self.num_samples)

    def backbone(self) -> Backbone:
        return resnet50(self.pretrained_backbone, levels=(1, 2, 3, 4), frozen=(), multiple=STRIDE)

    def encoder(self, in_channels: list[int]) -> PixelDecoder:
        finest, *coarser = in_channels
        pyramid = Pyramid(coarser[::-1], self.channels, self.num_levels)
        layers = [self.encoder_layer() for _ in range(self.encoder_layers)]
        encoder = DeformableEncoder(
            pyramid, layers, self.num_levels, self.temperature, self.offset, self.recompute
        )
        return PixelDecoder(encoder, finest, self.pairing.drawn)

    def encoder_layer(self) -> DeformableEncoderLayer:
        attention = DeformableAttention(
            self.channels, self.num_heads, self.num_levels, self.num_points
        )
        return DeformableEncoderLayer(
            attention, self.feed_forward(self.encoder_hidden), self.channels, self.dropout
        )

    def feed_forward(self, hidden: int) -> FeedForward:
        network = FeedForward(self.channels, hidden, self.dropout)
        xavier([network])
        return network

    def queries(self) -> nn.Module:
        return LearnedContents(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )

    def decoder(self) -> SpeakingDecoder:
        """Layers look at one level each, from coarse to fine and again."""
        layers = [self.decoder_layer(i % self.num_levels) for i in range(self.decoder_layers)]
        heads = [MaskHead(self.channels, self.num_classes)] * self.decoder_layers
        places = [Given()] * self.decoder_layers
        return SpeakingDecoder(
            layers, places, heads, nn.LayerNorm(self.channels), attend_mask, self.recompute
        )

    def decoder_layer(self, level: int) -> LookFirstLayer:
        self_attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        looks = MaskedCrossAttention(self.channels, self.num_heads, self.dropout, level)
        feed_forward = self.feed_forward(self.hidden)
        return LookFirstLayer(
            self.compete, self_attention, looks, feed_forward, self.channels, self.dropout
        )

    def terms(self) -> list[Term]:
        return [Softmax(2.0, 2.0), PointEntropy(5.0, 5.0), Dice(5.0, 5.0)]

    def criterion(self) -> SetCriterion:
        return SetCriterion(self.terms(), self.match, self.pairing)

    def undecayed(self, network: nn.Module) -> Iterator[str]:
        """The parameters of ``network`` that weight decay leaves alone: norms, and what is learned of queries and of
        the levels that they see."""
        for name, module in network.named_modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                yield from (f"{name}.{part}" for part, _ in module.named_parameters())
        yield from ("queries.embedding", "queries.position", "encoder.level")
