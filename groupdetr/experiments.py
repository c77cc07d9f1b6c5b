"""Every preset and every row of the paper's tables, by name: a detector and how it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO, ViTDINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.lite import (
    LiteConditionalDETR,
    LiteDABDeformableDETR,
    LiteDABDETR,
    LiteDINO,
    LiteDNDETR,
    LiteMask2Former,
)
from groupdetr.detectors.lw_detr import (
    LW_DETR_LARGE,
    LW_DETR_MEDIUM,
    LW_DETR_SMALL,
    LW_DETR_TINY,
    LW_DETR_XLARGE,
)
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
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
from groupdetr.modeling.backbones.registry import NONE_FROZEN, SWIN_LARGE
from groupdetr.settings import DEFAULT_SETTINGS, Settings

K = 11  # the paper's number of groups (Sec. 4.1)
TINY_K = 6  # the number of groups of the -tiny presets
LW_DETR_K = 13  # the number of groups of LW-DETR and RF-DETR


@dataclass(frozen=True)
class Experiment:
    """A detector, how it is trained, and for which task."""

    recipe: Recipe
    settings: Settings
    about: str = ""  # a few words for `groupdetr presets`
    # The paper's AP on COCO, or NDS, in percent. None if it is not a row of a table.
    reported: float | None = None
    task: str = "detection"  # a name in `groupdetr.tasks.registry`


# Settings: how detectors are trained

EPOCHS_12 = Settings(epochs=12, lr_drop=(11 / 12,))  # official scripts: StepLR at epoch 11
EPOCHS_36 = Settings(epochs=36, lr_drop=(30 / 36,))
EPOCHS_50 = DEFAULT_SETTINGS
# PaddleDetection's settings of ViT-Huge
VIT_H_EPOCHS_12 = replace(EPOCHS_12, backbone_lr=1e-4, layer_decay=0.7, imgsz=1184, recompute=True)
# Mask2Former's configuration, whose 368,750 iterations are 50 epochs
MASK2FORMER_EPOCHS_50 = Settings(
    epochs=50,
    lr_drop=(327778 / 368750, 355092 / 368750),
    weight_decay=0.05,
    clip=0.01,
    augment="lsj",
)
# The same schedule in 12 epochs: no configuration of 12 epochs is published.
MASK2FORMER_EPOCHS_12 = replace(MASK2FORMER_EPOCHS_50, epochs=12)


# LW-DETR's scripts (Chen et al. 2024) by the size of the model: the learning rate is constant. Its
# backbone has 1.5e-4 times the square of the factor of the decoder ("component decay").
def _lw_detr(batch: int, layer_decay: float, factor: float, weight_decay: float) -> Settings:
    return Settings(
        epochs=60,
        batch=batch,
        imgsz=640,
        multi_scale="per-image",
        backbone_lr=round(1.5e-4 * factor**2, 9),  # 7.35e-5 or 3.75e-5
        decoder_lr=round(1e-4 * factor, 9),
        layer_decay=layer_decay,
        weight_decay=weight_decay,
        lr_drop=(),
        ema=0.9997,
    )


LW_DETR_SETTINGS = {
    "tiny": _lw_detr(32, 0.8, 0.7, 1e-4),
    "small": _lw_detr(32, 0.8, 0.7, 1e-4),
    "medium": _lw_detr(16, 0.7, 0.7, 1e-4),
    "large": _lw_detr(16, 0.7, 0.5, 1e-4),
    "xlarge": _lw_detr(16, 0.75, 0.5, 1e-3),
}
# The defaults with which the package rfdetr 1.11.2 fine-tunes; the learning rate is constant.
# `imgsz` is that of each model.
RF_DETR_SETTINGS = Settings(
    epochs=100,
    batch=4,
    multi_scale="per-batch",
    backbone_lr=7.35e-5,
    decoder_lr=7e-5,
    layer_decay=0.8,
    lr_drop=(),
    ema=0.993,
    ema_warmup=100,
)
# PETR's configuration, in which the learning rate changes once an epoch
PETR_EPOCHS_24 = Settings(
    epochs=24,
    batch=8,
    imgsz=320,
    lr=2e-4,
    backbone_lr=2e-5,
    weight_decay=0.01,
    clip=35.0,
    schedule="cosine",
    warmup=500,
    augment="petr",
)
# About ten minutes on two cores with three hundred images
TINY_SETTINGS = Settings(
    epochs=80,
    batch=8,
    imgsz=128,
    lr=1e-3,
    backbone_lr=1e-3,
    schedule="cosine",
    warmup=100,
    augment="flip",
)
# A Vision Transformer from random weights takes smaller steps. On the demo's images and with seed
# 100, four epochs at 1e-3 reached 17.8 AP with one group and 7.6 with thirteen; the first two of
# eight epochs at 5e-4 reached 14.9 and 16.6.
MICRO_SETTINGS = replace(TINY_SETTINGS, lr=5e-4, backbone_lr=5e-4)
# Fine-tuning of a pretrained backbone. Three hundred images take about ten minutes on two cores.
# These settings had the highest AP on BCCD in ten minutes of one core, among those that were tried
# with dab-deformable-detr-lite and seed 101: 160, 192 and 224 pixels, rates of 5e-4, 1e-3 and 2e-3.
LITE_SETTINGS = replace(
    TINY_SETTINGS,
    epochs=40,
    batch=4,
    imgsz=224,
    lr=2e-3,
    backbone_lr=4e-4,
    augment="flip+photometric",
)
# Conditional DETR takes smaller steps on photographs. On BCCD, after 20 epochs with seed 100, rates
# of 5e-4, 1e-3 and 2e-3 reached 34.2, 34.6 and 25.0 AP with one group, and the first two of them
# 37.9 and 40.7 with six.
LITE_CONDITIONAL_SETTINGS = replace(LITE_SETTINGS, lr=1e-3, backbone_lr=2e-4)
# A quarter of an hour on one core with the demo's scenes. Ten epochs reach 21.4 NDS, and 7.6 with
# PETR's augmentation.
TINY_SCENES_SETTINGS = replace(TINY_SETTINGS, imgsz=64, epochs=16, clip=35.0, augment="none")


# Detectors that several experiments train

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

NamedExperiment = tuple[str, Experiment]


# Presets: names without a slash

ABOUT_R50 = "ResNet-50, stride 32"
ABOUT_DC5 = "dilated ResNet-50, stride 16"
ABOUT_LEVELS = "ResNet-50, four levels"
ABOUT_VIT_H = "ViT-Huge, simple pyramid"
ABOUT_V99 = "VoVNetV2-99, six cameras"
ON_A_CPU = "small, trains on a CPU"
LITE = "pretrained, fine-tunes on a CPU"


def _presets() -> Iterator[NamedExperiment]:
    """Yield the detectors as users train them."""
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


# The paper's tables and figures: names with a slash


def _without_and_with_groups(
    name: str,
    recipe: Recipe,
    settings: Settings,
    reported: tuple[float, float],
    task: str = "detection",
) -> Iterator[NamedExperiment]:
    """Yield the baseline, K = 1, and the detector with K groups.

    ``reported`` is the paper's result of each.
    """
    baseline, group = reported
    yield name, Experiment(recipe, settings, reported=baseline, task=task)
    with_groups = replace(recipe, num_groups=K)
    yield f"{name}-group", Experiment(with_groups, settings, reported=group, task=task)


def _table2() -> Iterator[NamedExperiment]:
    """Table 2: detectors without groups at equal wall time.

    The paper does not say when the learning rate drops in 15 and in 60 epochs. Here it drops at
    about the same share of the training as in 12 and in 50 epochs.
    """
    epochs_15 = Settings(epochs=15, lr_drop=(14 / 15,))
    epochs_60 = Settings(epochs=60, lr_drop=(48 / 60,))
    rows: tuple[tuple[str, Recipe, Settings, float], ...] = (
        ("conditional-detr-r50-15e", CONDITIONAL_R50, epochs_15, 34.4),
        ("conditional-detr-r50-60e", CONDITIONAL_R50, epochs_60, 41.6),
        ("dab-detr-r50-15e", DAB_R50, epochs_15, 36.3),
        ("dab-detr-r50-60e", DAB_R50, epochs_60, 42.9),
    )
    for row, recipe, settings, reported in rows:
        yield f"table2/{row}", Experiment(recipe, settings, reported=reported)


def _table3() -> Iterator[NamedExperiment]:
    """Table 3: detectors without and with groups after 12 epochs."""
    # name, recipe, (AP with K = 1, AP with K groups)
    rows: tuple[tuple[str, Recipe, tuple[float, float]], ...] = (
        ("conditional-detr-r50-12e", CONDITIONAL_R50, (32.6, 37.6)),
        ("conditional-detr-r50-dc5-12e", CONDITIONAL_DC5, (36.4, 41.2)),
        ("dab-detr-r50-12e", DAB_R50, (35.2, 39.1)),
        ("dab-detr-r50-dc5-12e", DAB_DC5, (37.5, 41.9)),
        ("dn-detr-r50-12e", DN_R50, (38.6, 40.6)),
        ("dn-detr-r50-dc5-12e", DN_DC5, (41.9, 44.5)),
        ("dab-deformable-detr-r50-12e", DAB_DEFORMABLE_R50, (44.2, 45.7)),
        ("dino-4scale-r50-12e", DINO_R50, (49.4, 50.1)),
    )
    for row, recipe, reported in rows:
        name = f"table3/{row}"
        yield from _without_and_with_groups(name, recipe, EPOCHS_12, reported)


def _table4() -> Iterator[NamedExperiment]:
    """Table 4: detectors without and with groups after 50 epochs, or 36 epochs for DINO."""
    swin_l_36 = replace(EPOCHS_36, recompute=True)
    # name, recipe, settings, (AP with K = 1, AP with K groups)
    rows: tuple[tuple[str, Recipe, Settings, tuple[float, float]], ...] = (
        ("conditional-detr-r50-50e", CONDITIONAL_R50, EPOCHS_50, (40.9, 43.4)),
        ("conditional-detr-r50-dc5-50e", CONDITIONAL_DC5, EPOCHS_50, (43.7, 45.8)),
        ("dab-detr-r50-50e", DAB_R50, EPOCHS_50, (42.2, 44.5)),
        ("dab-detr-r50-dc5-50e", DAB_DC5, EPOCHS_50, (44.5, 46.7)),
        ("dn-detr-r50-50e", DN_R50, EPOCHS_50, (44.0, 45.4)),
        ("dn-detr-r50-dc5-50e", DN_DC5, EPOCHS_50, (47.5, 48.0)),
        ("dab-deformable-detr-r50-50e", DAB_DEFORMABLE_R50, EPOCHS_50, (48.1, 49.7)),
        ("dino-4scale-r50-36e", DINO_R50, EPOCHS_36, (50.9, 51.3)),
        ("dino-4scale-swin-l-36e", DINO_SWIN_L, swin_l_36, (58.0, 58.4)),
    )
    for row, recipe, settings, reported in rows:
        yield from _without_and_with_groups(f"table4/{row}", recipe, settings, reported)


def _masks() -> Iterator[NamedExperiment]:
    """Instance segmentation, mask AP."""
    rows: tuple[tuple[str, Settings, tuple[float, float]], ...] = (
        ("mask2former-r50-12e", MASK2FORMER_EPOCHS_12, (38.5, 39.7)),
        ("mask2former-r50-50e", MASK2FORMER_EPOCHS_50, (43.7, 44.0)),
    )
    for row, settings, reported in rows:
        yield from _without_and_with_groups(
            f"masks/{row}",
            Mask2Former(),
            settings,
            reported,
            task="instance_segmentation",
        )


def _scenes() -> Iterator[NamedExperiment]:
    """Multi-view 3D detection, NDS."""
    rows: tuple[tuple[str, Recipe, tuple[float, float], str], ...] = (
        ("petr-v99-24e", PETR(), (42.0, 45.0), "detection3d"),
        ("petrv2-v99-24e", PETRv2(), (50.3, 51.3), "detection3d_two_frames"),
    )
    for row, recipe, reported, task in rows:
        yield from _without_and_with_groups(
            f"scenes/{row}", recipe, PETR_EPOCHS_24, reported, task=task
        )


def _table7() -> Iterator[NamedExperiment]:
    """Table 7: which parts of Group DETR matter, with ResNet-50 and on a CPU."""
    joint = replace(CONDITIONAL_R50, group_attention="attend_across_groups")
    naive = replace(joint, match="match_naively", inference_group=None)
    tiny_joint = replace(TinyConditionalDETR(), group_attention="attend_across_groups")
    tiny_naive = replace(tiny_joint, match="match_naively", inference_group=None)
    # row, what it is, recipe with ResNet-50, recipe for a CPU, reported AP
    rows: tuple[tuple[str, str, Recipe, Recipe, float], ...] = (
        ("a", "one-to-one", CONDITIONAL_R50, TinyConditionalDETR(), 32.6),
        ("b", "naive one-to-many", naive, tiny_naive, 8.4),
        ("c", "groups, joint self-attention", joint, tiny_joint, 34.8),
        ("d", "Group DETR", CONDITIONAL_R50, TinyConditionalDETR(), 37.6),
    )
    for row, what, recipe, tiny_recipe, reported in rows:
        has_groups = row != "a"
        recipe = replace(recipe, num_groups=K if has_groups else 1)
        tiny_recipe = replace(tiny_recipe, num_groups=TINY_K if has_groups else 1)
        yield f"table7/{row}", Experiment(recipe, EPOCHS_12, what, reported)
        yield f"table7/{row}-tiny", Experiment(tiny_recipe, TINY_SETTINGS, what)


def _fig8() -> Iterator[NamedExperiment]:
    """Fig. 8: neither denoising nor groups, each of them alone, and both.

    The last row has no reported AP: it is both, with denoising losses in the primary group only.
    """
    primary = replace(DN_R50, denoise="denoise_primary_group")
    tiny_primary = replace(TinyDNDETR(), denoise="denoise_primary_group")
    in_one_group = "denoising in one group only"
    # row, what it is, recipe with ResNet-50, recipe for a CPU, whether it has groups, reported AP
    rows: tuple[tuple[str, str, Recipe, Recipe, bool, float | None], ...] = (
        ("none", "neither", DAB_R50, TinyDABDETR(), False, 35.2),
        ("dn", "denoising", DN_R50, TinyDNDETR(), False, 38.6),
        ("group", "groups", DAB_R50, TinyDABDETR(), True, 39.1),
        ("dn-group", "denoising and groups", DN_R50, TinyDNDETR(), True, 40.6),
        ("dn-primary-group", in_one_group, primary, tiny_primary, True, None),
    )
    for row, what, recipe, tiny_recipe, has_groups, reported in rows:
        recipe = replace(recipe, num_groups=K if has_groups else 1)
        tiny_recipe = replace(tiny_recipe, num_groups=TINY_K if has_groups else 1)
        yield f"fig8/{row}", Experiment(recipe, EPOCHS_12, what, reported)
        yield f"fig8/{row}-tiny", Experiment(tiny_recipe, TINY_SETTINGS, what)


def _fig9() -> Iterator[NamedExperiment]:
    """Fig. 9: AP by the number of groups.

    The text of the paper does not give the numbers of groups of the figure, so these are ours.
    """
    for groups in (1, 3, 5, 7, 9, 11, 13, 15):
        recipe = replace(CONDITIONAL_R50, num_groups=groups)
        yield f"fig9/k{groups}", Experiment(recipe, EPOCHS_12)


def library_experiments() -> dict[str, Experiment]:
    parts = (
        _presets,
        _lw_detr_presets,
        _rf_detr_seg_presets,
        _table2,
        _table3,
        _table4,
        _masks,
        _scenes,
        _table7,
        _fig8,
        _fig9,
    )
    experiments = {}
    for part in parts:
        for name, experiment in part():
            recipe = replace(experiment.recipe, preset=name)
            experiments[name] = replace(experiment, recipe=recipe)
    return experiments


# Published models that are missing here, and the reason
UNAVAILABLE = dict.fromkeys(
    ("rf-detr-xl", "rf-detr-xlarge", "rf-detr-2xl", "rf-detr-2xlarge"),
    "Roboflow publishes the RF-DETR detectors XL and 2XL under the Platform Model License 1.0, "
    "which is not an open-source licence",
)

# `groupdetr.registry.register_model` adds to it.
EXPERIMENTS: dict[str, Experiment] = library_experiments()
