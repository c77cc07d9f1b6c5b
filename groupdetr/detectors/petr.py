"""PETR (Liu et al., ECCV 2022, arXiv 2203.05625) and PETRv2 (ICCV 2023, arXiv 2206.01256): boxes in space, from the
images of several cameras, by queries that look at all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from groupdetr.criterion.boxes3d import CodeL1, Codes
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, xavier
from groupdetr.modeling.attention.dense_cross_attention import DenseCrossAttention
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.grid_mask import GridMask
from groupdetr.modeling.backbones.vovnet import vovnet99
from groupdetr.modeling.decoder import Decoder, DecoderLayer, keep
from groupdetr.modeling.encoders.camera_encoder import CameraEncoder
from groupdetr.modeling.encoders.feature_projection import TopDown
from groupdetr.modeling.heads import MovingHead, SpaceHead, SplitRegression
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import Gated, Given
from groupdetr.modeling.queries.learned_queries import LearnedSpacePoints
from groupdetr.ops.boxes3d import CODE
from groupdetr.structures.camera_images import CameraImages


@dataclass(frozen=True)
class PETR(Recipe):
    """Numbers as in the official configuration for nuScenes with VoVNetV2-99."""

    num_classes: int = 10
    num_queries: int = 900
    num_detections: int = 300
    hidden: int = 2048  # of the feed-forward networks
    grid_mask: float = (
        0.7  # the probability that squares of a batch's images are hidden in training
    )
    eps: float = 1e-5  # of the inverse sigmoid

    backbone_weights: ClassVar[bool] = False  # none that could be fetched
    stride: ClassVar[int] = 16  # of the map that queries look at
    velocity: ClassVar[float] = 0.2  # what it counts in the loss

    def backbone(self) -> Backbone:
        return vovnet99(self.pretrained_backbone, self.recompute, GridMask(self.grid_mask))

    def encoder(self, in_channels: list[int]) -> CameraEncoder:
        return CameraEncoder(
            TopDown(in_channels, self.channels), self.channels, self.token_place(), self.stride
        )

    def token_place(self) -> nn.Module:
        return Given()

    def queries(self) -> LearnedSpacePoints:
        return LearnedSpacePoints(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )

    def decoder(self) -> Decoder:
        layers = [self.decoder_layer() for _ in range(self.decoder_layers)]
        places, norm = [Given()] * len(layers), nn.LayerNorm(self.channels)
        return Decoder(layers, places, self.heads(), norm, keep, self.recompute)

    def decoder_layer(self) -> DecoderLayer:
        self_attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        looks = DenseCrossAttention(self.channels, self.num_heads, self.dropout)
        feed_forward = FeedForward(self.channels, self.hidden, self.dropout)
        xavier([feed_forward])
        for linear in (feed_forward.expand, feed_forward.contract):
            nn.init.zeros_(linear.bias)
        return DecoderLayer(
            self.compete, self_attention, looks, feed_forward, self.channels, self.dropout
        )

    def heads(self) -> Sequence[SpaceHead]:
        """One that all layers share."""
        regress = MLP(self.channels, self.channels, CODE, num_layers=3)
        return [SpaceHead(self.channels, self.num_classes, regress, self.eps)] * self.decoder_layers

    def terms(self) -> list[Term]:
        return [Focal(2.0, 2.0, eps=1e-12), CodeL1(0.25, 0.25, self.velocity)]

    def criterion(self) -> SetCriterion:
        return SetCriterion(self.terms(), self.match, Codes())

    def noise(self, side: int) -> CameraImages:
        """Two scenes of two views, through cameras of which nothing is known but that they look somewhere."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(2, 2, 3, side, side, generator=generator)
        projections = torch.eye(4) + 0.1 * torch.randn(2, 2, 4, 4, generator=generator)
        return CameraImages.seen_through(pixels, projections, torch.ones(2))


@dataclass(frozen=True)
class PETRv2(PETR):
    """Of two moments, whose views stand side by side: the later ones first."""

    velocity: ClassVar[float] = 1.0

    def token_place(self) -> nn.Module:
        return Gated(MLP(self.channels, self.channels, self.channels, num_layers=2))

    def heads(self) -> Sequence[SpaceHead]:
        """One for each layer."""
        return [self.head() for _ in range(self.decoder_layers)]

    def head(self) -> MovingHead:
        return MovingHead(self.channels, self.num_classes, SplitRegression(self.channels), self.eps)
