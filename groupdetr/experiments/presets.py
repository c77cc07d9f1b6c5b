"""The presets: detectors as users train them. Their names have no slash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from groupdetr.detectors.dab_deformable_detr import TwoStageDABDeformableDETR
from groupdetr.detectors.dino import ViTDINO
from groupdetr.detectors.lite import (
    LiteConditionalDETR,
    LiteDABDeformableDETR,
    LiteDABDETR,
    LiteDINO,
    LiteDNDETR,
    LiteMask2Former,
)
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import (
    MicroRFDETR,
    MicroRFDETRSeg,
    TinyConditionalDETR,
    TinyDABDeformableDETR,
    TinyDABDETR,
    TinyDINO,
    TinyDNDETR,
    TinyMask2Former,
    TinyPETR,
    TinyPETRv2,
    TinyViTDINO,
)
from groupdetr.experiments.experiment import Experiment, NamedExperiment
from groupdetr.experiments.recipes import (
    CONDITIONAL_DC5,
    CONDITIONAL_R50,
    DAB_DC5,
    DAB_DEFORMABLE_R50,
    DAB_R50,
    DINO_R50,
    DINO_SWIN_L,
    DN_DC5,
    DN_R50,
    GROUP_DINO_R50,
    GROUP_DINO_VIT_H,
    LW_DETR_K,
    LW_DETR_SIZES,
    RF_DETR_SEG_SIZES,
    RF_DETR_SIZES,
    TINY_K,
    K,
)
from groupdetr.experiments.training_settings import (
    EPOCHS_12,
    EPOCHS_50,
    LITE_CONDITIONAL_SETTINGS,
    LITE_SETTINGS,
    LW_DETR_SETTINGS,
    MASK2FORMER_EPOCHS_50,
    MICRO_SETTINGS,
    PETR_EPOCHS_24,
    RF_DETR_SETTINGS,
    TINY_SCENES_SETTINGS,
    TINY_SETTINGS,
    VIT_H_EPOCHS_12,
)
from groupdetr.settings import Settings

ABOUT_R50 = "ResNet-50, stride 32"
ABOUT_DC5 = "dilated ResNet-50, stride 16"
ABOUT_LEVELS = "ResNet-50, four levels"
ABOUT_VIT_H = "ViT-Huge, simple pyramid"
ABOUT_V99 = "VoVNetV2-99, six cameras"
ON_A_CPU = "small, trains on a CPU"
LITE = "fine-tunes on a CPU"  # its backbone is pretrained


def presets() -> Iterator[NamedExperiment]:
    """Yield all presets."""
    yield from _detr_presets()
    yield from _lw_detr_presets()
    yield from _rf_detr_seg_presets()


def _detr_presets() -> Iterator[NamedExperiment]:
    """Yield the detectors of the paper, with its numbers of groups."""
    swin_l_12 = replace(EPOCHS_12, recompute=True)
    two_stage = TwoStageDABDeformableDETR()
    about_two_stage = "ResNet-50, two stages"  # the queries are the encoder's proposals
    # name, recipe, settings, K, about
    rows_2d: tuple[tuple[str, Recipe, Settings, int, str], ...] = (
        ("conditional-detr-r50", CONDITIONAL_R50, EPOCHS_50, K, ABOUT_R50),
        ("conditional-detr-r50-dc5", CONDITIONAL_DC5, EPOCHS_50, K, ABOUT_DC5),
        ("conditional-detr-tiny", TinyConditionalDETR(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("dab-detr-r50", DAB_R50, EPOCHS_50, K, ABOUT_R50),
        ("dab-detr-r50-dc5", DAB_DC5, EPOCHS_50, K, ABOUT_DC5),
        ("dab-detr-tiny", TinyDABDETR(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("dn-detr-r50", DN_R50, EPOCHS_50, K, ABOUT_R50),
        ("dn-detr-r50-dc5", DN_DC5, EPOCHS_50, K, ABOUT_DC5),
        ("dn-detr-tiny", TinyDNDETR(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("dab-deformable-detr-r50", DAB_DEFORMABLE_R50, EPOCHS_50, K, ABOUT_LEVELS),
        ("dab-deformable-detr-r50-two-stage", two_stage, EPOCHS_50, K, about_two_stage),
        ("dab-deformable-detr-tiny", TinyDABDeformableDETR(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("dino-4scale-r50", DINO_R50, EPOCHS_12, K, ABOUT_LEVELS),
        ("dino-4scale-swin-l", DINO_SWIN_L, swin_l_12, K, "Swin-L, four levels"),
        ("dino-4scale-vit-h", ViTDINO(), VIT_H_EPOCHS_12, K, ABOUT_VIT_H),
        ("group-dino-r50", GROUP_DINO_R50, EPOCHS_12, K, ABOUT_LEVELS),
        ("group-dino-vit-h", GROUP_DINO_VIT_H, VIT_H_EPOCHS_12, K, ABOUT_VIT_H),
        ("dino-tiny", TinyDINO(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("mask2former-r50", Mask2Former(), MASK2FORMER_EPOCHS_50, K, "ResNet-50, three levels"),
        ("mask2former-tiny", TinyMask2Former(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("conditional-detr-lite", LiteConditionalDETR(), LITE_CONDITIONAL_SETTINGS, TINY_K, LITE),
        ("dab-detr-lite", LiteDABDETR(), LITE_SETTINGS, TINY_K, LITE),
        ("dn-detr-lite", LiteDNDETR(), LITE_SETTINGS, TINY_K, LITE),
        ("dab-deformable-detr-lite", LiteDABDeformableDETR(), LITE_SETTINGS, TINY_K, LITE),
        ("dino-lite", LiteDINO(), LITE_SETTINGS, TINY_K, LITE),
        ("mask2former-lite", LiteMask2Former(), LITE_SETTINGS, TINY_K, LITE),
        ("dino-vit-tiny", TinyViTDINO(), TINY_SETTINGS, TINY_K, "small plain ViT, on a CPU"),
    )
    for name, recipe, settings, groups, about in rows_2d:
        recipe = replace(recipe, num_groups=groups)
        task = "instance_segmentation" if isinstance(recipe, Mask2Former) else "detection"
        yield name, Experiment(recipe, settings, about, task=task)
    about_v2 = "VoVNetV2-99, two frames"
    rows_3d: tuple[tuple[str, Recipe, Settings, int, str], ...] = (
        ("petr-v99", PETR(), PETR_EPOCHS_24, K, ABOUT_V99),
        ("petrv2-v99", PETRv2(), PETR_EPOCHS_24, K, about_v2),
        ("petr-tiny", TinyPETR(), TINY_SCENES_SETTINGS, TINY_K, ON_A_CPU),
        ("petrv2-tiny", TinyPETRv2(), TINY_SCENES_SETTINGS, TINY_K, ON_A_CPU),
    )
    for name, recipe, settings, groups, about in rows_3d:
        recipe = replace(recipe, num_groups=groups)
        task = "detection3d_two_frames" if isinstance(recipe, PETRv2) else "detection3d"
        yield name, Experiment(recipe, settings, about, task=task)


def _lw_detr_presets() -> Iterator[NamedExperiment]:
    """Yield LW-DETR and RF-DETR, which are published with `LW_DETR_K` groups.

    RF-DETR has further models, which are not under a free licence.
    """
    for size, lw_detr in LW_DETR_SIZES.items():
        recipe = replace(lw_detr, num_groups=LW_DETR_K)
        about = f"ViT, {lw_detr.vit_depth} blocks of {lw_detr.vit_width}"
        yield f"lw-detr-{size}", Experiment(recipe, LW_DETR_SETTINGS[size], about)
    for size, (rf_detr, imgsz) in RF_DETR_SIZES.items():
        recipe = replace(rf_detr, num_groups=LW_DETR_K)
        settings = replace(RF_DETR_SETTINGS, imgsz=imgsz)
        yield f"rf-detr-{size}", Experiment(recipe, settings, f"DINOv2, {imgsz} pixels")
    micro = replace(MicroRFDETR(), num_groups=LW_DETR_K)
    yield "rf-detr-micro", Experiment(micro, MICRO_SETTINGS, ON_A_CPU)


def _rf_detr_seg_presets() -> Iterator[NamedExperiment]:
    """Yield RF-DETR-Seg, all of whose sizes are under a free licence."""
    for size, (rf_detr_seg, imgsz) in RF_DETR_SEG_SIZES.items():
        recipe = replace(rf_detr_seg, num_groups=LW_DETR_K)
        settings = replace(RF_DETR_SETTINGS, imgsz=imgsz)
        about = f"DINOv2, {imgsz} pixels, masks"
        yield f"rf-detr-seg-{size}", Experiment(recipe, settings, about, task="boxes_and_masks")
    micro = replace(MicroRFDETRSeg(), num_groups=LW_DETR_K)
    yield "rf-detr-seg-micro", Experiment(micro, MICRO_SETTINGS, ON_A_CPU, task="boxes_and_masks")


# Published models that are missing here, and the reason
UNAVAILABLE = dict.fromkeys(
    ("rf-detr-xl", "rf-detr-xlarge", "rf-detr-2xl", "rf-detr-2xlarge"),
    "Roboflow publishes the RF-DETR detectors XL and 2XL under the Platform Model License 1.0, "
    "which is not an open-source licence",
)
