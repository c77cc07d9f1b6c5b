"""DINO (Zhang et al., ICLR 2023, arXiv 2203.03605): queries that are proposed, and denoising that also refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.detectors.recipe import xavier_by_group
from groupdetr.groups import denoise_in_all
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.swin import swin_large
from groupdetr.modeling.backbones.vit import vit_huge
from groupdetr.modeling.decoder import look_forward_twice
from groupdetr.modeling.encoders.feature_projection import AsTheyAre
from groupdetr.modeling.heads import BoxHead
from groupdetr.modeling.queries.denoising import (
    ContrastiveNoise,
    DenoisingQueries,
    LabelEmbedding,
    copies_that_fit,
)
from groupdetr.modeling.queries.proposals import MixedProposals


@dataclass(frozen=True)
class DINO(DABDeformableDETR):
    """Four levels; numbers as in the official code's launch scripts, which set the box noise to 1."""

    num_queries: int = 900
    num_detections: int = 300
    temperature: float = 20.0
    offset: float = 0.0
    shared_heads: bool = True  # by all decoder layers; detrex gives every layer its own
    num_denoising: int = (
        100  # of a group, of those to be found again: as many copies of all objects as go into them
    )
    denoising_groups: int | None = None  # copies, whatever their number of queries
    label_noise_ratio: float = 0.5  # half of it is the probability that a label changes
    box_noise_scale: float = 1.0

    update = staticmethod(look_forward_twice)
    denoise = staticmethod(denoise_in_all)

    def queries(self) -> nn.Module:
        proposals = MixedProposals(
            self.num_groups, self.num_queries, self.channels, self.num_classes, self.inference_group
        )
        for table in (proposals.heads.project.weight, proposals.embedding):
            xavier_by_group(table)
        labels = LabelEmbedding(self.num_classes, self.channels)
        noise = ContrastiveNoise(self.num_classes, self.label_noise_ratio / 2, self.box_noise_scale)
        return DenoisingQueries(proposals, labels, noise, self.copies, self.denoise, self.eps)

    def copies(self, objects: int) -> int:
        """How often each of the objects of a batch is noised, the most crowded image having ``objects``."""
        return self.denoising_groups or copies_that_fit(self.num_denoising, objects)

    def query_places(self) -> list[nn.Module]:
        return [self.query_place()] * self.decoder_layers

    def heads(self) -> Sequence[BoxHead]:
        """One that all layers share, or one for each; boxes start as proposed."""
        times, apart = (self.decoder_layers, 1) if self.shared_heads else (1, self.decoder_layers)
        return [BoxHead(self.channels, self.num_classes, self.eps) for _ in range(apart)] * times

    def norm(self) -> nn.Module:
        return nn.LayerNorm(self.channels)


@dataclass(frozen=True)
class SwinDINO(DINO):
    """On Swin-L, pretrained on ImageNet-22k."""

    def backbone(self) -> Backbone:
        return swin_large(self.pretrained_backbone, self.recompute)


@dataclass(frozen=True)
class ViTDINO(DINO):
    """On ViT-Huge with a simple pyramid, whose maps need no projection (Group DETR v2, Chen et al., arXiv 2211.03594;
    numbers as in PaddleDetection's code)."""

    def backbone(self) -> Backbone:
        return vit_huge(self.pretrained_backbone, self.recompute)

    def pyramid(self, in_channels: list[int]) -> nn.Module:
        del in_channels
        return AsTheyAre()
