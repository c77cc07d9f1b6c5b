"""The detectors that several experiments train, and their numbers of groups."""

from __future__ import annotations

from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO, ViTDINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.lw_detr import (
    LW_DETR_LARGE,
    LW_DETR_MEDIUM,
    LW_DETR_SMALL,
    LW_DETR_TINY,
    LW_DETR_XLARGE,
)
from groupdetr.detectors.rf_detr import (
    RF_DETR_BASE,
    RF_DETR_LARGE,
    RF_DETR_LARGE_DEPRECATED,
    RF_DETR_MEDIUM,
    RF_DETR_NANO,
    RF_DETR_SMALL,
)
from groupdetr.detectors.rf_detr_seg import (
    RF_DETR_SEG_2XLARGE,
    RF_DETR_SEG_LARGE,
    RF_DETR_SEG_MEDIUM,
    RF_DETR_SEG_NANO,
    RF_DETR_SEG_PREVIEW,
    RF_DETR_SEG_SMALL,
    RF_DETR_SEG_XLARGE,
)
from groupdetr.modeling.backbones.registry import NONE_FROZEN, SWIN_LARGE

K = 11  # the paper's number of groups (Sec. 4.1)
TINY_K = 6  # the number of groups of the -tiny presets
LW_DETR_K = 13  # the number of groups of LW-DETR and RF-DETR

CONDITIONAL_R50 = ConditionalDETR()
CONDITIONAL_DC5 = ConditionalDETR(dilated=True)
DAB_R50 = DABDETR()
DAB_DC5 = DABDETR(dilated=True, temperature=10.0)  # the temperature of its published checkpoint
DN_R50 = DNDETR()
DN_DC5 = DNDETR(dilated=True)
DAB_DEFORMABLE_R50 = DABDeformableDETR()
DINO_R50 = DINO()
DINO_SWIN_L = DINO(backbone=SWIN_LARGE, frozen_stages=NONE_FROZEN)
# Group DINO as PaddleDetection trains it
GROUP_DINO_R50 = DINO(shared_heads=False, labels_per_group=True, eps=1e-5)
GROUP_DINO_VIT_H = ViTDINO(shared_heads=False, labels_per_group=True, eps=1e-5)

LW_DETR_SIZES = {
    "tiny": LW_DETR_TINY,
    "small": LW_DETR_SMALL,
    "medium": LW_DETR_MEDIUM,
    "large": LW_DETR_LARGE,
    "xlarge": LW_DETR_XLARGE,
}
# The side of the images in pixels
RF_DETR_SIZES = {
    "nano": (RF_DETR_NANO, 384),
    "small": (RF_DETR_SMALL, 512),
    "medium": (RF_DETR_MEDIUM, 576),
    "large": (RF_DETR_LARGE, 704),
    "base": (RF_DETR_BASE, 560),
    "large-deprecated": (RF_DETR_LARGE_DEPRECATED, 560),
}

RF_DETR_SEG_SIZES = {
    "nano": (RF_DETR_SEG_NANO, 312),
    "small": (RF_DETR_SEG_SMALL, 384),
    "medium": (RF_DETR_SEG_MEDIUM, 432),
    "large": (RF_DETR_SEG_LARGE, 504),
    "xlarge": (RF_DETR_SEG_XLARGE, 624),
    "2xlarge": (RF_DETR_SEG_2XLARGE, 768),
    "preview": (RF_DETR_SEG_PREVIEW, 432),
}
