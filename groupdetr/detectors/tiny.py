"""The -tiny presets: detectors that train from scratch on a CPU in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from groupdetr.attention.cross_attention import ConditionalCrossAttention
from groupdetr.backbone import Backbone, small_resnet
from groupdetr.decoder import Decoder
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dn_detr import DNDETR

GAIN = 3.0  # how sharply queries look at first


@dataclass(frozen=True)
class Tiny:
    """What makes a detector of the dense family small: less than half a million parameters, and a start that spares
    the first thousand steps."""

    channels: int = 64
    num_heads: int = 4
    num_queries: int = 50
    num_detections: int = 100
    dropout: float = 0.0
    encoder_layers: int = 1
    decoder_layers: int = 3
    hidden: int = 128
    temperature: float = 10000.0  # that of queries, and pixel centres, so that places in image and queries agree
    offset: float = -0.5

    backbone_weights: ClassVar[bool] = False

    def backbone(self) -> Backbone:
        return small_resnet(widths=(32, 64), depths=(1, 2))

    def decoder(self) -> Decoder:
        decoder: Decoder = super().decoder()  # type: ignore[misc]
        for look in decoder.modules():
            if isinstance(look, ConditionalCrossAttention):
                look.start_around_the_reference(GAIN)
        return decoder


@dataclass(frozen=True)
class TinyConditionalDETR(Tiny, ConditionalDETR):
    """Conditional DETR on a CPU."""


@dataclass(frozen=True)
class TinyDABDETR(Tiny, DABDETR):
    """DAB-DETR on a CPU."""


@dataclass(frozen=True)
class TinyDNDETR(Tiny, DNDETR):
    """DN-DETR on a CPU."""

    num_denoising: int = 20
