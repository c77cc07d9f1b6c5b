"""RF-DETR: LW-DETR with DINOv2 as its backbone, and without statistics of batches.

(Robinson et al. 2025, arXiv 2511.09554)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from groupdetr.detectors.lw_detr import LWDETR
from groupdetr.modeling.backbones.registry import WINDOWED_DINOV2
from groupdetr.modeling.encoders.projector import RF_DETR_LEVELS, Resampling, channel_norm


@dataclass(frozen=True)
class RFDETR(LWDETR):
    """RF-DETR-nano. Hyperparameters are those of version 1.11 of Roboflow's package.

    The global blocks are one number higher than one would expect: a map is always the output of a
    block with windows. All published weights are trained with that.
    """

    num_queries: int = 300
    num_detections: int = 300
    decoder_layers: int = 2
    backbone: str = WINDOWED_DINOV2
    vit_width: int = 384
    vit_depth: int = 12
    vit_heads: int = 6
    num_windows: int = 2
    global_blocks: tuple[int, ...] = (3, 6, 9)
    map_blocks: tuple[int, ...] = (2, 5, 8, 11)
    position_grid: int = 24

    @property
    def resamplings(self) -> Mapping[str, Resampling]:
        return RF_DETR_LEVELS

    def projector_norm(self, channels: int) -> nn.Module:
        return channel_norm(channels)


RF_DETR_NANO = RFDETR()
RF_DETR_SMALL = RFDETR(decoder_layers=3, position_grid=32)
RF_DETR_MEDIUM = RFDETR(decoder_layers=4, position_grid=36)
RF_DETR_LARGE = RFDETR(decoder_layers=4, position_grid=44)
# Of 2025, deprecated by Roboflow. The last block of the ViT has no map.
RF_DETR_BASE = RFDETR(
    decoder_layers=3,
    strides=(14,),
    num_windows=4,
    global_blocks=(2, 5, 8, 11),
    map_blocks=(1, 4, 7, 10),
    position_grid=37,
)
RF_DETR_LARGE_DEPRECATED = replace(
    RF_DETR_BASE,
    channels=384,
    num_heads=12,
    cross_attention_heads=24,
    num_points=4,
    projector_levels=("P3", "P5"),
    vit_width=768,
    vit_heads=12,
)
