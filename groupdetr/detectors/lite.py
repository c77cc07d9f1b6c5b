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
class LiteConditionalDETR(TinyConditionalDETR):
    """Conditional DETR with EfficientNet-Lite0, on the map of stride 16."""

    backbone: str = LITE0
    frozen_stages: int = 2
    freeze_norms: bool = True
    strides: tuple[int, ...] = (16,)
    channels: int = 128


@dataclass(frozen=True)
class LiteDABDETR(TinyDABDETR):
    """DAB-DETR with EfficientNet-Lite0, on the map of stride 16."""

    backbone: str = LITE0
    frozen_stages: int = 2
    freeze_norms: bool = True
    strides: tuple[int, ...] = (16,)
    channels: int = 128


@dataclass(frozen=True)
class LiteDNDETR(TinyDNDETR):
    """DN-DETR with EfficientNet-Lite0, on the map of stride 16."""

    backbone: str = LITE0
    frozen_stages: int = 2
    freeze_norms: bool = True
    strides: tuple[int, ...] = (16,)
    channels: int = 128


@dataclass(frozen=True)
class LiteDABDeformableDETR(TinyDABDeformableDETR):
    """DAB-Deformable-DETR with EfficientNet-Lite0, on levels of strides 8, 16 and 32."""

    backbone: str = LITE0
    frozen_stages: int = 2
    freeze_norms: bool = True


@dataclass(frozen=True)
class LiteDINO(TinyDINO):
    """DINO with EfficientNet-Lite0, on levels of strides 8, 16 and 32."""

    backbone: str = LITE0
    frozen_stages: int = 2
    freeze_norms: bool = True


@dataclass(frozen=True)
class LiteMask2Former(TinyMask2Former):
    """Mask2Former with EfficientNet-Lite0, on levels of strides 4 to 32."""

    backbone: str = LITE0
    frozen_stages: int = 2
    freeze_norms: bool = True
