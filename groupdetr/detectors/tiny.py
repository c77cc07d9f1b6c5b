"""The -tiny presets: detectors that train from scratch on a CPU in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from groupdetr.backbone import Backbone, convnext
from groupdetr.detectors.conditional_detr import ConditionalDETR


class Tiny:
    """A small backbone without batch statistics, so that a batch may be cut in pieces without a difference."""

    backbone_weights: ClassVar[bool] = False

    def backbone(self) -> Backbone:
        return convnext(widths=(32, 64, 128), depths=(1, 2, 2))


@dataclass(frozen=True)
class TinyConditionalDETR(Tiny, ConditionalDETR):
    """Conditional DETR of less than a million parameters."""

    channels: int = 64
    num_heads: int = 4
    num_queries: int = 50
    dropout: float = 0.0
    encoder_layers: int = 1
    decoder_layers: int = 3
    hidden: int = 128
    temperature: float = 20.0  # as DAB-DETR's: tells neighbours apart on small maps
