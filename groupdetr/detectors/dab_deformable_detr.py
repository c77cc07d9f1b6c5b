"""DAB-Deformable-DETR (Liu et al., ICLR 2022; Zhu et al., ICLR 2021): boxes as queries, which look at a few points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, xavier, xavier_by_group
from groupdetr.modeling.attention.deformable_attention import (
    DeformableAttention,
    DeformableCrossAttention,
)
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.resnet import resnet50
from groupdetr.modeling.decoder import Decoder, DecoderLayer, refine
from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder, DeformableEncoderLayer
from groupdetr.modeling.encoders.feature_projection import Pyramid
from groupdetr.modeling.heads import BoxHead
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import OfPaddedBox, Scaled
from groupdetr.modeling.queries.learned_queries import LearnedAnchorsAndContents
from groupdetr.modeling.queries.proposals import Proposals

NARROW = -2.0  # what the first head says of width and height before training, less than the anchor


@dataclass(frozen=True)
class DABDeformableDETR(Recipe):
    """Numbers as in the official code, the one stage that its published weights have."""

    num_detections: int = 100
    dropout: float = 0.0
    encoder_layers: int = 6
    hidden: int = 2048  # of the feed-forward networks
    num_levels: int = 4
    num_points: int = 4  # of a level, that a head looks at
    temperature: float = 10000.0  # of the image's position embedding
    offset: float = -0.5  # and its shift, in pixels of the feature map
    eps: float = 1e-3  # of the inverse sigmoid

    update = staticmethod(refine)

    def backbone(self) -> Backbone:
        return resnet50(self.pretrained_backbone, dilated=False, levels=(2, 3, 4))

    def encoder(self, in_channels: list[int]) -> DeformableEncoder:
        layers = [self.encoder_layer() for _ in range(self.encoder_layers)]
        start(layers)
        return DeformableEncoder(
            self.pyramid(in_channels),
            layers,
            self.num_levels,
            self.temperature,
            self.offset,
            self.recompute,
        )

    def pyramid(self, in_channels: list[int]) -> nn.Module:
        return Pyramid(in_channels, self.channels, self.num_levels)

    def encoder_layer(self) -> DeformableEncoderLayer:
        attention = DeformableAttention(
            self.channels, self.num_heads, self.num_levels, self.num_points
        )
        return DeformableEncoderLayer(attention, self.feed_forward(), self.channels, self.dropout)

    def feed_forward(self) -> FeedForward:
        return FeedForward(self.channels, self.hidden, self.dropout)

    def queries(self) -> nn.Module:
        return LearnedAnchorsAndContents(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )

    def decoder(self) -> Decoder:
        layers = [self.decoder_layer() for _ in range(self.decoder_layers)]
        places = self.query_places()
        start([*layers, *places])
        return Decoder(layers, places, self.heads(), self.norm(), self.update, self.recompute)

    def decoder_layer(self) -> DecoderLayer:
        self_attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        looks = DeformableCrossAttention(
            self.channels, self.num_heads, self.num_levels, self.num_points
        )
        return DecoderLayer(
            self.compete, self_attention, looks, self.feed_forward(), self.channels, self.dropout
        )

    def query_places(self) -> list[nn.Module]:
        """Where queries are, scaled from the second layer on, by one network."""
        place = self.query_place()
        scaled = Scaled(place, MLP(self.channels, self.channels, self.channels, num_layers=2))
        return [place, *[scaled] * (self.decoder_layers - 1)]

    def query_place(self) -> nn.Module:
        return OfPaddedBox(self.channels)

    def heads(self) -> Sequence[BoxHead]:
        """One for each layer; the first starts with small boxes."""
        heads = [
            BoxHead(self.channels, self.num_classes, self.eps) for _ in range(self.decoder_layers)
        ]
        last: nn.Linear = heads[0].regress.layers[-1]  # type: ignore[assignment]
        nn.init.constant_(last.bias[2:], NARROW)
        return heads

    def norm(self) -> nn.Module:
        return nn.Identity()

    def terms(self) -> list[Term]:
        return [Focal(2.0, 1.0), L1(5.0, 5.0), GIoU(2.0, 2.0, eps=1e-6)]


@dataclass(frozen=True)
class TwoStageDABDeformableDETR(DABDeformableDETR):
    """With queries from the encoder, as detrex has it; the official second stage was never run."""

    def queries(self) -> nn.Module:
        proposals = Proposals(
            self.num_groups, self.num_queries, self.channels, self.num_classes, self.inference_group
        )
        xavier_by_group(proposals.heads.project.weight)
        return proposals

    def heads(self) -> Sequence[BoxHead]:
        """Proposals have a size already, so no head starts with small boxes."""
        return [
            BoxHead(self.channels, self.num_classes, self.eps) for _ in range(self.decoder_layers)
        ]


def start(modules: Sequence[nn.Module]) -> None:
    """Xavier's rule for every matrix but those of self-attention, whose three inputs stand in one, and of deformable
    attention, which starts with rays of points."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, MLP | FeedForward):
                xavier([part])
