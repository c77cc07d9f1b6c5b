"""The -lite presets: small detectors with a pretrained backbone, to fine-tune on a CPU in minutes.

They are the -tiny presets with EfficientNet-Lite0, whose ImageNet weights are installed with this
library. Its stem and first two stages are not trained: they are the most expensive ones, and their
features fit any images.
"""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.detectors.tiny import (
    TinyConditionalDETR,
    TinyDABDeformableDETR,
    TinyDABDETR,
    TinyDINO,
    TinyDNDETR,
    TinyMask2Former,
)
from groupdetr.modeling.backbones.efficientnet_lite import LITE0


@dataclass(frozen=True)
class Lite:
    """What makes a detector a -lite one: its backbone.

    It comes before the recipe of a detector in the list of base classes, so its fields replace
    those of the detector.
    """

    backbone: str = LITE0
    frozen_stages: int = 2
    freeze_norms: bool = True


@dataclass(frozen=True)
class LiteDense(Lite):
    """A Conditional DETR, DAB-DETR or DN-DETR with EfficientNet-Lite0, on the map of stride 16."""

    strides: tuple[int, ...] = (16,)
    channels: int = 128


@dataclass(frozen=True)
class LiteConditionalDETR(LiteDense, TinyConditionalDETR):
    """Conditional DETR with EfficientNet-Lite0."""


@dataclass(frozen=True)
class LiteDABDETR(LiteDense, TinyDABDETR):
    """DAB-DETR with EfficientNet-Lite0."""


@dataclass(frozen=True)
class LiteDNDETR(LiteDense, TinyDNDETR):
    """DN-DETR with EfficientNet-Lite0."""


@dataclass(frozen=True)
class LiteDABDeformableDETR(Lite, TinyDABDeformableDETR):
    """DAB-Deformable-DETR with EfficientNet-Lite0, on levels of strides 8, 16 and 32."""


@dataclass(frozen=True)
class LiteDINO(Lite, TinyDINO):
    """DINO with EfficientNet-Lite0, on levels of strides 8, 16 and 32."""


@dataclass(frozen=True)
class LiteMask2Former(Lite, TinyMask2Former):
    """Mask2Former with EfficientNet-Lite0, on levels of strides 4 to 32."""
