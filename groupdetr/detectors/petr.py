"""PETR and PETRv2: 3D boxes from the images of several cameras.

Queries are 3D points that attend to the images of all cameras. (Liu et al., ECCV 2022, arXiv
2203.05625, and ICCV 2023, arXiv 2206.01256)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from groupdetr.criterion.boxes3d import EncodedBoxes3D, EncodedBoxL1
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.term import Term
from groupdetr.detectors.recipe import Recipe, init_xavier
from groupdetr.groups import GROUP_ATTENTIONS, MATCHES
from groupdetr.modeling.attention.dense_cross_attention import DenseCrossAttention
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.backbones.grid_mask import GridMask
from groupdetr.modeling.backbones.registry import NONE_FROZEN, VOVNET99, BackboneOptions
from groupdetr.modeling.decoder import Decoder, DecoderLayer, keep_reference
from groupdetr.modeling.encoders.camera_encoder import CameraEncoder
from groupdetr.modeling.encoders.feature_projection import FPN
from groupdetr.modeling.heads import Box3DHead, Box3DVelocityHead, MultiBranchRegression
from groupdetr.modeling.mlp import MLP, FeedForward
from groupdetr.modeling.position_embedding import (
    FixedPositionEmbedding,
    GatedPositionEmbedding,
    PositionEmbedding,
)
from groupdetr.modeling.queries.learned_queries import LearnedPoints3D
from groupdetr.ops.boxes3d import CODE_SIZE
from groupdetr.structures.camera_images import CameraImages


@dataclass(frozen=True)
class PETR(Recipe):
    """PETR. Hyperparameters are those of the official configuration.

    It is the one for nuScenes with VoVNetV2-99.
    """

    num_classes: int = 10
    num_queries: int = 900
    backbone: str = VOVNET99
    # Queries attend to the first map, to which the FPN adds the second one.
    strides: tuple[int, ...] = (16, 32)
    frozen_stages: int = NONE_FROZEN
    freeze_norms: bool = False  # their statistics are fixed in any case
    num_detections: int = 300
    dim_feedforward: int = 2048  # width of the feed-forward networks
    grid_mask: float = 0.7  # probability that squares of a batch's images are hidden in training
    eps: float = 1e-5  # of the inverse sigmoid

    velocity: ClassVar[float] = 0.2  # weight of the velocity in the loss

    @property
    def num_maps(self) -> tuple[int, int]:
        return 2, 2

    def backbone_options(self) -> BackboneOptions:
        return replace(
            super().backbone_options(),
            multiple=self.strides[-1],
            augment=GridMask(self.grid_mask),
            bgr=True,
        )

    def build_encoder(self, in_channels: list[int]) -> CameraEncoder:
        return CameraEncoder(
            FPN(in_channels, self.channels),
            self.channels,
            self.token_position_embedding(),
            self.strides[0],
        )

    def token_position_embedding(self) -> PositionEmbedding:
        """Return the embedding of the 3D positions of the tokens."""
        return FixedPositionEmbedding()

    def build_queries(self) -> LearnedPoints3D:
        return LearnedPoints3D(
            self.num_groups, self.num_queries, self.channels, self.inference_group
        )

    def build_decoder(self) -> Decoder:
        layers = [self.decoder_layer() for _ in range(self.decoder_layers)]
        position_embeddings = [FixedPositionEmbedding()] * self.decoder_layers
        norm = nn.LayerNorm(self.channels)
        return Decoder(
            layers, position_embeddings, self.heads(), norm, keep_reference, self.recompute
        )

    def decoder_layer(self) -> DecoderLayer:
        self_attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        cross_attention = DenseCrossAttention(self.channels, self.num_heads, self.dropout)
        feed_forward = FeedForward(self.channels, self.dim_feedforward, self.dropout)
        init_xavier([feed_forward])
        nn.init.zeros_(feed_forward.expand.bias)
        nn.init.zeros_(feed_forward.contract.bias)
        return DecoderLayer(
            GROUP_ATTENTIONS[self.group_attention],
            self_attention,
            cross_attention,
            feed_forward,
            self.channels,
            self.dropout,
        )

    def heads(self) -> Sequence[Box3DHead]:
        """Return one head, which all decoder layers share."""
        regress = MLP(self.channels, self.channels, CODE_SIZE, num_layers=3)
        return [Box3DHead(self.channels, self.num_classes, regress, self.eps)] * self.decoder_layers

    def terms(self) -> list[Term]:
        return [Focal(2.0, 2.0, eps=1e-12), EncodedBoxL1(0.25, 0.25, self.velocity)]

    def criterion(self) -> SetCriterion:
        return SetCriterion(self.terms(), MATCHES[self.match], EncodedBoxes3D())

    def example_images(self, side: int) -> CameraImages:
        """Return two scenes of two views of noise, through cameras with random projections."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(2, 2, 3, side, side, generator=generator)
        projections = torch.eye(4) + 0.1 * torch.randn(2, 2, 4, 4, generator=generator)
        return CameraImages.from_projections(pixels, projections, torch.ones(2))


@dataclass(frozen=True)
class PETRv2(PETR):
    """PETRv2, which has the images of two frames. The views of the later frame come first."""

    velocity: ClassVar[float] = 1.0

    def token_position_embedding(self) -> PositionEmbedding:
        gate = MLP(self.channels, self.channels, self.channels, num_layers=2)
        return GatedPositionEmbedding(gate)

    def heads(self) -> Sequence[Box3DHead]:
        """Return one head for every decoder layer."""
        return [self.head() for _ in range(self.decoder_layers)]

    def head(self) -> Box3DVelocityHead:
        regress = MultiBranchRegression(self.channels)
        return Box3DVelocityHead(self.channels, self.num_classes, regress, self.eps)
