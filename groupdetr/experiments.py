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
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.tiny import (
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
# Fine-tuning of a pretrained backbone on a few hundred images, in ten minutes on two cores
LITE_SETTINGS = replace(TINY_SETTINGS, imgsz=256, lr=5e-4, backbone_lr=1e-4)
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

NamedExperiment = tuple[str, Experiment]


# Presets: names without a slash

ABOUT_R50 = "ResNet-50, stride 32"
ABOUT_DC5 = "dilated ResNet-50, stride 16"
ABOUT_LEVELS = "ResNet-50, four levels"
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
        ("dino-4scale-vit-h", ViTDINO(), VIT_H_EPOCHS_12, K, "ViT-Huge, simple pyramid"),
        ("dino-tiny", TinyDINO(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("mask2former-r50", Mask2Former(), MASK2FORMER_EPOCHS_50, K, "ResNet-50, three levels"),
        ("mask2former-tiny", TinyMask2Former(), TINY_SETTINGS, TINY_K, ON_A_CPU),
        ("conditional-detr-lite", LiteConditionalDETR(), LITE_SETTINGS, TINY_K, LITE),
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


def _all_experiments() -> dict[str, Experiment]:
    parts = (
        _presets,
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


# `groupdetr.registry.register_model` adds to it.
EXPERIMENTS: dict[str, Experiment] = _all_experiments()
