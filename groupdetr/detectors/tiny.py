"""The -tiny presets: detectors that train from scratch on a CPU in minutes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from groupdetr.criterion.classification import Focal
from groupdetr.criterion.term import Term
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO, ViTDINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.mask2former import STRIDE, Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.modeling.attention.conditional_cross_attention import ConditionalCrossAttention
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.grid_mask import GridMask
from groupdetr.modeling.backbones.resnet import small_resnet
from groupdetr.modeling.backbones.vit import Sizes, vit_huge
from groupdetr.modeling.decoder import Decoder
from groupdetr.modeling.encoders.camera_encoder import CameraEncoder
from groupdetr.modeling.encoders.transformer_encoder import TransformerEncoder
from groupdetr.modeling.position_embedding import Scaled
from groupdetr.modeling.queries.learned_queries import LearnedAnchors, LearnedSpacePoints

GAIN = 3.0  # how sharply queries look at first
SIZE = 0.27  # of anchors at first
SIGHT = 1 / 3  # of the space, a radius of 34 metres, is where queries of scenes start
SMALL_VIT = Sizes(width=96, depth=4, num_heads=3, window=4, global_blocks=(1, 3), image=256)


@dataclass(frozen=True)
class Tiny:
    """What makes a detector small: less than a million parameters."""

    channels: int = 64
    num_heads: int = 4
    num_queries: int = 50
    num_detections: int = 100
    dropout: float = 0.0
    encoder_layers: int = 1
    decoder_layers: int = 3
    hidden: int = 128

    backbone_weights: ClassVar[bool] = False

    def terms(self) -> list[Term]:
        """Classes weigh twice in all of them, as in Conditional DETR."""
        return [Focal(2.0, 2.0), *super().terms()[1:]]  # type: ignore[misc]


@dataclass(frozen=True)
class TinyDense(Tiny):
    """Of the dense family, with a start that spares the first thousand steps."""

    temperature: float = (
        10000.0  # that of queries, and pixel centres, so that places in image and queries agree
    )
    offset: float = -0.5

    loads_backbone: ClassVar[bool] = False

    def backbone(self) -> Backbone:
        return small_resnet(widths=(32, 64), depths=(1, 2))

    def encoder(self, in_channels: list[int]) -> TransformerEncoder:
        encoder: TransformerEncoder = super().encoder(in_channels)  # type: ignore[misc]
        if isinstance(encoder.place, Scaled):
            encoder.place.scale.start_at(1.0)
        return encoder

    def queries(self) -> nn.Module:
        queries: nn.Module = super().queries()  # type: ignore[misc]
        for source in queries.modules():
            if isinstance(source, LearnedAnchors):
                source.start_all_over(SIZE)
        return queries

    def decoder(self) -> Decoder:
        decoder: Decoder = super().decoder()  # type: ignore[misc]
        for look in decoder.modules():
            if isinstance(look, ConditionalCrossAttention):
                look.start_around_the_reference(GAIN)
        return decoder


@dataclass(frozen=True)
class TinyDeformable(Tiny):
    """Of the deformable family: strides 8, 16 and 32."""

    num_levels: int = 3

    loads_backbone: ClassVar[bool] = False

    def backbone(self) -> Backbone:
        return small_resnet(widths=(32, 64, 96), depths=(1, 2, 1), levels=(2, 3))


@dataclass(frozen=True)
class TinyConditionalDETR(TinyDense, ConditionalDETR):
    """Conditional DETR on a CPU."""


@dataclass(frozen=True)
class TinyDABDETR(TinyDense, DABDETR):
    """DAB-DETR on a CPU."""


@dataclass(frozen=True)
class TinyDNDETR(TinyDense, DNDETR):
    """DN-DETR on a CPU."""

    num_denoising: int = 20


@dataclass(frozen=True)
class TinyDABDeformableDETR(TinyDeformable, DABDeformableDETR):
    """DAB-Deformable-DETR on a CPU."""


@dataclass(frozen=True)
class TinyTwoStageDABDeformableDETR(TinyDeformable, TwoStageDABDeformableDETR):
    """The same in two stages."""


@dataclass(frozen=True)
class TinyDINO(TinyDeformable, DINO):
    """DINO on a CPU."""

    num_denoising: int = 20


@dataclass(frozen=True)
class TinyViTDINO(TinyDeformable, ViTDINO):
    """DINO on a plain Vision Transformer on a CPU: what is done with ViT-Huge, tried at small size."""

    num_levels: int = 4
    num_denoising: int = 20

    backbone_weights: ClassVar[bool] = False
    loads_backbone: ClassVar[bool] = True

    def backbone(self) -> Backbone:
        return vit_huge(
            self.pretrained_backbone, self.recompute, replace(SMALL_VIT, channels=self.channels)
        )


@dataclass(frozen=True)
class TinyMask2Former(Mask2Former):
    """Mask2Former on a CPU."""

    channels: int = 64
    num_heads: int = 4
    num_queries: int = 50
    encoder_layers: int = 1
    decoder_layers: int = 3
    encoder_hidden: int = 128
    hidden: int = 128
    num_samples: int = 256

    backbone_weights: ClassVar[bool] = False
    loads_backbone: ClassVar[bool] = False

    def backbone(self) -> Backbone:
        return small_resnet(
            widths=(32, 64, 96, 96), depths=(1, 2, 1, 1), levels=(1, 2, 3, 4), multiple=STRIDE
        )


@dataclass(frozen=True)
class TinyPETR(PETR):
    """PETR on a CPU, for images of about 160 by 64 pixels, with a start that spares some hundred steps: where things
    are is heard beside what they look like."""

    channels: int = 64
    num_heads: int = 4
    num_queries: int = 100
    num_detections: int = 100
    dropout: float = 0.0
    decoder_layers: int = 3
    hidden: int = 128
    grid_mask: float = 0.0

    stride: ClassVar[int] = 8
    loads_backbone: ClassVar[bool] = False

    def backbone(self) -> Backbone:
        return small_resnet(
            (32, 64, 96), (1, 2, 1), levels=(2, 3), multiple=16, augment=GridMask(self.grid_mask)
        )

    def encoder(self, in_channels: list[int]) -> CameraEncoder:
        encoder = super().encoder(in_channels)
        encoder.points.start_as_loud()
        encoder.views.start_as_loud()
        return encoder

    def queries(self) -> LearnedSpacePoints:
        queries = super().queries()
        queries.start_around(SIGHT)
        queries.place.start_as_loud()
        return queries


@dataclass(frozen=True)
class TinyPETRv2(TinyPETR, PETRv2):
    """PETRv2 on a CPU."""
