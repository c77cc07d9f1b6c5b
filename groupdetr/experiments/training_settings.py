"""How detectors are trained: the settings of the presets and of the paper's tables."""

from __future__ import annotations

from dataclasses import replace

from groupdetr.settings import DEFAULT_SETTINGS, Settings

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
