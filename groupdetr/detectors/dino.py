"""DINO: queries from proposals of the encoder, and contrastive denoising.

(Zhang et al., ICLR 2023, arXiv 2203.03605)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.detectors.recipe import init_xavier_by_group
from groupdetr.groups import DENOISINGS
from groupdetr.modeling.backbones.registry import (
    NONE_FROZEN,
    SMALL_VIT,
    VIT_HUGE,
    BackboneOptions,
)
from groupdetr.modeling.heads import BoxHead
from groupdetr.modeling.position_embedding import PositionEmbedding
from groupdetr.modeling.queries.denoising import (
    ContrastiveNoise,
    DenoisingQueries,
    GroupLabelEmbedding,
    LabelEmbedding,
    num_copies,
)
from groupdetr.modeling.queries.proposals import MixedProposals
from groupdetr.modeling.queries.query_source import QuerySource


@dataclass(frozen=True)
class DINO(DABDeformableDETR):
    """DINO with four levels.

    Hyperparameters are those of the official code's launch scripts, which set the box noise to 1.
    """

    num_queries: int = 900
    num_detections: int = 300
    temperature: float = 20.0
    offset: float = 0.0
    # True: all decoder layers share one head. In detrex every layer has its own.
    shared_heads: bool = True
    # Positive denoising queries of a group: there are as many copies of all objects as fit into
    # them. There are as many negative ones.
    num_denoising: int = 100
    # If it is given, the number of copies, whatever the number of queries is.
    denoising_groups: int | None = None
    label_noise_ratio: float = 0.5  # twice the probability that a label is replaced
    box_noise_scale: float = 1.0  # ``box_scale`` of `ContrastiveNoise`
    # True: every group has its own embedding of the labels, as in PaddleDetection. False: groups
    # share one.
    labels_per_group: bool = False
    # The function of `groupdetr.groups` that says which groups have denoising losses
    denoise: str = "denoise_all_groups"
    reference_update: str = "look_forward_twice"

    def choices(self) -> dict[str, Mapping[str, Callable[..., Any]]]:
        return {**super().choices(), "denoise": DENOISINGS}

    def build_queries(self) -> QuerySource:
        proposals = MixedProposals(
            self.num_groups, self.num_queries, self.channels, self.num_classes, self.inference_group
        )
        init_xavier_by_group(proposals.heads.project.weight)
        init_xavier_by_group(proposals.embedding)
        labels = self.label_embedding()
        noise = ContrastiveNoise(self.num_classes, self.label_noise_ratio / 2, self.box_noise_scale)
        return DenoisingQueries(
            proposals, labels, noise, self.copies, DENOISINGS[self.denoise], self.eps
        )

    def label_embedding(self) -> LabelEmbedding:
        """Return the embedding of the labels of denoising queries."""
        if self.labels_per_group:
            return GroupLabelEmbedding(self.num_groups, self.num_classes, self.channels)
        return LabelEmbedding(self.num_classes, self.channels)

    def copies(self, objects: int) -> int:
        return self.denoising_groups or num_copies(self.num_denoising, objects)

    def query_position_embeddings(self) -> list[PositionEmbedding]:
        """Return one position embedding, which all decoder layers share. It is not scaled."""
        return [self.query_position_embedding()] * self.decoder_layers

    def heads(self) -> Sequence[BoxHead]:
        """Return one head that all decoder layers share, or one for every layer.

        None starts with small boxes, because the boxes of proposals have a size already.
        """
        if self.shared_heads:
            return [self.head()] * self.decoder_layers
        return [self.head() for _ in range(self.decoder_layers)]

    def norm(self) -> nn.Module:
        return nn.LayerNorm(self.channels)


@dataclass(frozen=True)
class ViTDINO(DINO):
    """DINO with ViT-Huge and a simple feature pyramid.

    (Group DETR v2, Chen et al., arXiv 2211.03594)

    Hyperparameters are those of PaddleDetection's code. The maps of the pyramid have the width of
    the transformer already, so they are not projected.
    """

    backbone: str = VIT_HUGE
    strides: tuple[int, ...] = (8, 16, 32, 64)
    frozen_stages: int = NONE_FROZEN

    @property
    def has_simple_pyramid(self) -> bool:
        """True if the backbone is a plain ViT with a simple pyramid, and not another backbone."""
        return self.backbone in (VIT_HUGE, SMALL_VIT)

    @property
    def num_maps(self) -> tuple[int, int]:
        return (self.num_levels if self.has_simple_pyramid else 1), self.num_levels

    def backbone_options(self) -> BackboneOptions:
        options = super().backbone_options()
        if self.has_simple_pyramid:
            return options
        # Other backbones have no map of stride 64. The projection computes it.
        others = tuple(stride for stride in self.strides if stride < 64)
        return replace(options, strides=others or self.strides)

    def feature_projection(self, in_channels: list[int]) -> nn.Module:
        if self.has_simple_pyramid:
            return nn.Identity()
        return super().feature_projection(in_channels)
