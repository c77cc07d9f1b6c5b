"""The -tiny presets: detectors that train from scratch on a CPU in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from groupdetr.attention.cross_attention import ConditionalCrossAttention
from groupdetr.backbone import Backbone, small_resnet
from groupdetr.decoder import Decoder
from groupdetr.detectors.conditional_detr import ConditionalDETR

GAIN = 3.0  # how sharply queries look at first


class Tiny:
    """A small backbone and a start that spares the first thousand steps."""

    backbone_weights: ClassVar[bool] = False

    def backbone(self) -> Backbone:
        return small_resnet(widths=(32, 64), depths=(1, 2))


@dataclass(frozen=True)
class TinyConditionalDETR(Tiny, ConditionalDETR):
    """Conditional DETR of less than half a million parameters."""

    channels: int = 64
    num_heads: int = 4
    num_queries: int = 50
    dropout: float = 0.0
    encoder_layers: int = 1
    decoder_layers: int = 3
    hidden: int = 128
    offset: float = -0.5  # pixel centres, so that places in the image and reference points agree

    def decoder(self) -> Decoder:
        decoder = super().decoder()
        for look in decoder.modules():
            if isinstance(look, ConditionalCrossAttention):
                look.start_around_the_reference(GAIN)
        return decoder
