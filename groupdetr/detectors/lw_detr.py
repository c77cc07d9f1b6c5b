"""LW-DETR: a plain Vision Transformer with windows, a convolutional projector, and few layers.

(Chen et al. 2024, arXiv 2406.03459)

It is by the first author of Group DETR, and it is published with K = 13 groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import IoUAwareBCE
from groupdetr.criterion.term import Term
from groupdetr.detectors.dab_deformable_detr import init_xavier_mlps
from groupdetr.detectors.recipe import Recipe, init_xavier_by_group
from groupdetr.groups import GROUP_ATTENTIONS
from groupdetr.modeling.attention.deformable_attention import DeformableCrossAttention
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.modeling.backbones.registry import (
    LW_DETR_VIT,
    NONE_FROZEN,
    WINDOWED_DINOV2,
    BackboneOptions,
)
from groupdetr.modeling.backbones.windowed_vit import WindowedViTSizes
from groupdetr.modeling.decoder import Decoder, DecoderLayer, keep_reference
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.encoders.projector import LW_DETR_LEVELS, Projector, Resampling
from groupdetr.modeling.frozen import freeze_batch_norms
from groupdetr.modeling.heads import PredictionHead, RelativeBoxHead
from groupdetr.modeling.mlp import FeedForward
from groupdetr.modeling.position_embedding import PaddedBoxPositionEmbedding, PositionEmbedding
from groupdetr.modeling.queries.proposals import ProposalsWithLearnedOffsets
from groupdetr.modeling.queries.query_source import QuerySource
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images


@dataclass(frozen=True)
class LWDETR(Recipe):
    """LW-DETR-tiny. Hyperparameters are those of the official code.

    Images are squares. The authors train on Objects365 before COCO, so a training on COCO alone
    does not reach their results.
    """

    proposals: ClassVar[type[ProposalsWithLearnedOffsets]] = ProposalsWithLearnedOffsets

    num_queries: int = 100
    num_detections: int = 100
    decoder_layers: int = 3
    dropout: float = 0.0
    dim_feedforward: int = 2048  # width of the feed-forward networks
    cross_attention_heads: int = 16  # of the cross-attention; `num_heads` are of self-attention
    num_points: int = 2  # sampling points of a head of the cross-attention on every level
    # The levels that queries attend to, from fine to coarse: "P4" has the stride of the backbone's
    # maps, "P3" half of it, and "P5" twice.
    projector_levels: tuple[str, ...] = ("P4",)
    backbone: str = LW_DETR_VIT
    strides: tuple[int, ...] = (16,)  # side of a patch, which is the stride of all maps of the ViT
    frozen_stages: int = NONE_FROZEN
    freeze_norms: bool = False  # of the projector
    square_images: bool = True
    # The sizes of the backbone, if it is a plain ViT with windows. Blocks are counted from 0.
    vit_width: int = 192
    vit_depth: int = 6
    vit_heads: int = 12
    num_windows: int = 4  # along each side of the image
    global_blocks: tuple[int, ...] = (1, 3, 5)  # the blocks that do not attend within windows
    map_blocks: tuple[int, ...] = (1, 3, 5)  # the blocks that return the maps
    position_grid: int = 14  # side of the table of position embeddings, in patches
    drop_path: float = 0.0  # rate of the ViT's last block; it rises linearly from 0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_order = [level for level in self.resamplings if level in self.projector_levels]
        if list(self.projector_levels) != in_order or not in_order:
            raise ValueError(
                f"projector_levels must be some of {', '.join(self.resamplings)} in this order, "
                f"not {list(self.projector_levels)}"
            )
        for name, width, heads in (
            ("cross_attention_heads", self.channels, self.cross_attention_heads),
            ("vit_heads", self.vit_width, self.vit_heads),
        ):
            if width % heads:
                raise ValueError(f"{width} channels cannot be split into {heads} {name}")
        if not self.map_blocks or list(self.map_blocks) != sorted(set(self.map_blocks)):
            raise ValueError(f"map_blocks must be in rising order, not {list(self.map_blocks)}")
        for name in ("global_blocks", "map_blocks"):
            for block in getattr(self, name):
                if block not in range(self.vit_depth):
                    raise ValueError(
                        f"{name} has {block!r}, and the blocks are 0 to {self.vit_depth - 1}"
                    )

    @property
    def num_maps(self) -> tuple[int, int]:
        # All maps of the ViT have one stride. Another backbone has one map of it.
        return 1, 1

    @property
    def has_windows(self) -> bool:
        """True if the backbone is a ViT with windows, and not another one."""
        return self.backbone in (LW_DETR_VIT, WINDOWED_DINOV2)

    @property
    def size_divisor(self) -> int:
        return self.vit_sizes.size_divisor if self.has_windows else 1

    @property
    def vit_sizes(self) -> WindowedViTSizes:
        """The sizes of the backbone, if it is a ViT with windows."""
        return WindowedViTSizes(
            width=self.vit_width,
            depth=self.vit_depth,
            num_heads=self.vit_heads,
            patch=self.strides[0],
            windows=self.num_windows,
            global_blocks=self.global_blocks,
            map_blocks=self.map_blocks,
            position_grid=self.position_grid,
            drop_path=self.drop_path,
        )

    def backbone_options(self) -> BackboneOptions:
        return replace(super().backbone_options(), windowed_vit=self.vit_sizes)

    def build_encoder(self, in_channels: list[int]) -> Encoder:
        projector = Projector(
            in_channels,
            self.channels,
            [self.resamplings[level] for level in self.projector_levels],
            self.projector_norm,
        )
        if self.freeze_norms:
            freeze_batch_norms(projector)
        return projector

    @property
    def resamplings(self) -> Mapping[str, Resampling]:
        """What gives the maps the size of each possible level of the projector, by its name."""
        return LW_DETR_LEVELS

    def projector_norm(self, channels: int) -> nn.Module:
        """Return a norm of the projector's convolutions."""
        return nn.BatchNorm2d(channels)

    def build_queries(self) -> QuerySource:
        queries = self.proposals(
            self.num_groups, self.num_queries, self.channels, self.num_classes, self.inference_group
        )
        init_xavier_by_group(queries.heads.project.weight)
        queries.heads.init_equal_predictions()
        return queries

    def build_decoder(self) -> Decoder:
        layers = [self.decoder_layer() for _ in range(self.decoder_layers)]
        position_embedding = self.query_position_embedding()
        init_xavier_mlps([*layers, position_embedding])
        # All layers share one position embedding and one head.
        return Decoder(
            layers,
            [position_embedding] * self.decoder_layers,
            [self.head()] * self.decoder_layers,
            nn.LayerNorm(self.channels),
            keep_reference,
            self.recompute,
        )

    def decoder_layer(self) -> DecoderLayer:
        self_attention = SelfAttention(self.channels, self.num_heads, self.dropout)
        cross_attention = DeformableCrossAttention(
            self.channels, self.cross_attention_heads, len(self.projector_levels), self.num_points
        )
        return DecoderLayer(
            GROUP_ATTENTIONS[self.group_attention],
            self_attention,
            cross_attention,
            FeedForward(self.channels, self.dim_feedforward, self.dropout),
            self.channels,
            self.dropout,
        )

    def query_position_embedding(self) -> PositionEmbedding:
        """Return the position embedding of the queries that all decoder layers share."""
        return PaddedBoxPositionEmbedding(self.channels)

    def head(self) -> PredictionHead:
        """Return the head that all decoder layers share."""
        return RelativeBoxHead(self.channels, self.num_classes)

    def terms(self) -> list[Term]:
        return [IoUAwareBCE(2.0, 1.0), L1(5.0, 5.0), GIoU(2.0, 2.0)]

    def example_images(self, side: int) -> Images | CameraImages:
        """Return two images of noise, padded to a square that the backbone accepts."""
        divisor = self.size_divisor
        side = max(1, side // divisor) * divisor
        return super().example_images(side)


# The published sizes. Each states what differs from a smaller one.
LW_DETR_TINY = LWDETR()
LW_DETR_SMALL = LWDETR(
    num_queries=300,
    num_detections=300,
    vit_depth=10,
    global_blocks=(2, 4, 5, 8),
    map_blocks=(2, 4, 5, 9),
)
LW_DETR_MEDIUM = replace(LW_DETR_SMALL, vit_width=384)
LW_DETR_LARGE = replace(
    LW_DETR_MEDIUM,
    channels=384,
    num_heads=12,
    cross_attention_heads=24,
    num_points=4,
    projector_levels=("P3", "P5"),
    drop_path=0.1,
)
LW_DETR_XLARGE = replace(LW_DETR_LARGE, vit_width=768)
