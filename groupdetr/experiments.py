"""Every preset, and every row of the paper's tables, as a recipe and how to train it. One dict, found by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from groupdetr.data.nuscenes import synthetic as nuscenes
from groupdetr.data.synthetic import SyntheticConfig
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO, SwinDINO, ViTDINO
from groupdetr.detectors.dn_detr import DNDETR
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
from groupdetr.errors import UsageError
from groupdetr.groups import denoise_in_primary, jointly, match_naively
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection3d.task import Detection3DTask, TwoFrameTask

K = 11  # the paper's number of groups (Sec. 4.1)


@dataclass(frozen=True)
class Experiment:
    """A detector, how it is trained, and what for."""

    recipe: Recipe
    settings: Settings
    about: str = ""
    reported: float | None = (
        None  # the paper's AP of COCO, or NDS, in percent, where it is a row of a table
    )
    groups: int | None = None  # K that `groupdetr train` takes unless told; None: the recipe's
    task: Any = DetectionTask  # one of the classes in tasks/


of_masks = partial(Experiment, task=InstanceTask)

# how to train

EPOCHS_12 = Settings(epochs=12, lr_drop=(11 / 12,))  # official scripts: StepLR at epoch 11
EPOCHS_36 = Settings(epochs=36, lr_drop=(30 / 36,))
EPOCHS_50 = Settings(epochs=50, lr_drop=(40 / 50,))
VIT_H = replace(
    EPOCHS_12, backbone_lr=1e-4, layer_decay=0.7, imgsz=1184, recompute=True
)  # PaddleDetection's
MASKS_50 = Settings(  # Mask2Former's configuration, whose 368,750 iterations are 50 epochs
    epochs=50,
    lr_drop=(327778 / 368750, 355092 / 368750),
    weight_decay=0.05,
    clip=0.01,
    augment="lsj",
)
MASKS_12 = replace(
    MASKS_50, epochs=12
)  # scaled from it: no configuration of 12 epochs is published
SCENES = Settings(  # PETR's configuration, whose rate falls once an epoch
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
TINY_K = 6
TINY = Settings(  # about ten minutes on two cores with three hundred pictures
    epochs=80,
    batch=8,
    imgsz=128,
    lr=1e-3,
    backbone_lr=1e-3,
    schedule="cosine",
    warmup=100,
    augment="flip",
)

# a quarter of an hour on one core with the demo's scenes; in ten epochs 21.4 NDS, and 7.6 with PETR's augmentation
TINY_SCENES = replace(TINY, imgsz=64, epochs=16, clip=35.0, augment="none")

# what the demo trains on, and how
DEMO_DATA = SyntheticConfig(
    image_size=192,
    num_classes=4,
    max_objects=5,
    texture=0.3,
    occlusion=0.2,
    sizes=(0.1, 0.4, 0.5),
    seed=1,
)
DEMO_COUNTS = {"train": 2000, "val": 300}
DEMO_SCENES_DATA = nuscenes.SyntheticConfig(
    train_scenes=120, val_scenes=20, samples=8, width=320, height=180, sweeps=False, seed=1
)
DEMO_SCENES = replace(TINY_SCENES, epochs=10, eval_every=1)
DEMO = replace(TINY, epochs=8, imgsz=64, augment="flip", eval_every=1)


@dataclass(frozen=True)
class Variant:
    """One of the trainings that a figure compares, on the demo's pictures."""

    label: str
    preset: str
    grouped: bool
    reported: float  # the paper's COCO AP in percent


FIG8 = (  # its AP: DAB-DETR with ResNet-50, 12 epochs
    Variant("none", "dab-detr-tiny", grouped=False, reported=35.2),
    Variant("denoising", "dn-detr-tiny", grouped=False, reported=38.6),
    Variant("groups", "dab-detr-tiny", grouped=True, reported=39.1),
    Variant("both", "dn-detr-tiny", grouped=True, reported=40.6),
)

# what to train

R50, DC5, TINY_CONDITIONAL = ConditionalDETR(), ConditionalDETR(dilated=True), TinyConditionalDETR()
DAB_R50, DAB_DC5 = DABDETR(), DABDETR(dilated=True, temperature=10.0)  # as its published checkpoint
DN_R50, DN_DC5 = DNDETR(), DNDETR(dilated=True)
DAB_DEFORMABLE, DINO_R50 = DABDeformableDETR(), DINO()


class JointGroups(ConditionalDETR):
    """Table 7 (c): groups without separate self-attention."""

    compete = staticmethod(jointly)


class NaiveOneToMany(JointGroups):
    """Table 7 (b): all queries attend to all, and every object is assigned to K of them."""

    match = staticmethod(match_naively)


class DenoisingInPrimaryGroup(DNDETR):
    """Fig. 8, the other reading: denoising queries count in the primary group alone."""

    denoise = staticmethod(denoise_in_primary)


class TinyDenoisingInPrimaryGroup(TinyDNDETR):
    """The same on a CPU."""

    denoise = staticmethod(denoise_in_primary)


class TinyJointGroups(TinyConditionalDETR):
    """Table 7 (c) on a CPU."""

    compete = staticmethod(jointly)


class TinyNaiveOneToMany(TinyJointGroups):
    """Table 7 (b) on a CPU."""

    match = staticmethod(match_naively)


ON_A_CPU = "trains from scratch on a CPU in minutes"


def _presets() -> Iterator[tuple[str, Experiment]]:
    families: dict[str, tuple[Recipe, Recipe, Recipe]] = {
        "conditional-detr": (R50, DC5, TINY_CONDITIONAL),
        "dab-detr": (DAB_R50, DAB_DC5, TinyDABDETR()),
        "dn-detr": (DN_R50, DN_DC5, TinyDNDETR()),
    }
    for family, (r50, dc5, tiny) in families.items():
        yield f"{family}-r50", Experiment(r50, EPOCHS_50, "ResNet-50, stride 32", groups=K)
        yield (
            f"{family}-r50-dc5",
            Experiment(dc5, EPOCHS_50, "ResNet-50 with dilated stage 4, stride 16", groups=K),
        )
        yield f"{family}-tiny", Experiment(tiny, TINY, ON_A_CPU, groups=TINY_K)
    yield from _deformable()
    yield from _scenes()


def _deformable() -> Iterator[tuple[str, Experiment]]:
    name, about = "dab-deformable-detr", "ResNet-50, four levels"
    yield f"{name}-r50", Experiment(DAB_DEFORMABLE, EPOCHS_50, about, groups=K)
    two_stage = TwoStageDABDeformableDETR()
    yield (
        f"{name}-r50-two-stage",
        Experiment(two_stage, EPOCHS_50, f"{about}, queries from the encoder", groups=K),
    )
    yield f"{name}-tiny", Experiment(TinyDABDeformableDETR(), TINY, ON_A_CPU, groups=TINY_K)
    yield "dino-4scale-r50", Experiment(DINO_R50, EPOCHS_12, about, groups=K)
    swin = replace(EPOCHS_12, recompute=True)
    yield "dino-4scale-swin-l", Experiment(SwinDINO(), swin, "Swin-L, four levels", groups=K)
    yield (
        "dino-4scale-vit-h",
        Experiment(ViTDINO(), VIT_H, "ViT-Huge with a simple pyramid", groups=K),
    )
    yield "dino-tiny", Experiment(TinyDINO(), TINY, ON_A_CPU, groups=TINY_K)
    yield (
        "mask2former-r50",
        of_masks(Mask2Former(), MASKS_50, "ResNet-50, masks of instances", groups=K),
    )
    yield "mask2former-tiny", of_masks(TinyMask2Former(), TINY, f"masks; {ON_A_CPU}", groups=TINY_K)
    yield (
        "dino-vit-tiny",
        Experiment(TinyViTDINO(), TINY, "a plain ViT; the path of ViT-Huge, tried", groups=TINY_K),
    )


def _scenes() -> Iterator[tuple[str, Experiment]]:
    v99 = "VoVNetV2-99, six cameras"
    yield "petr-v99", Experiment(PETR(), SCENES, v99, groups=K, task=Detection3DTask)
    yield (
        "petrv2-v99",
        Experiment(PETRv2(), SCENES, f"{v99}, two frames", groups=K, task=TwoFrameTask),
    )
    about = f"boxes in space; {ON_A_CPU}"
    yield (
        "petr-tiny",
        Experiment(TinyPETR(), TINY_SCENES, about, groups=TINY_K, task=Detection3DTask),
    )
    yield (
        "petrv2-tiny",
        Experiment(TinyPETRv2(), TINY_SCENES, about, groups=TINY_K, task=TwoFrameTask),
    )


def _table2() -> Iterator[tuple[str, Experiment]]:
    """Equal wall time. The paper does not say where 15 and 60 epochs drop the rate: in proportion, here."""
    rows = {"conditional-detr-r50": (R50, 34.4, 41.6), "dab-detr-r50": (DAB_R50, 36.3, 42.9)}
    for name, (recipe, *reported) in rows.items():
        for (epochs, drop), ap in zip(((15, 14), (60, 48)), reported):
            settings = Settings(epochs=epochs, lr_drop=(drop / epochs,))
            yield f"table2/{name}-{epochs}e", Experiment(recipe, settings, "Table 2, K = 1", ap)


def _table3() -> Iterator[tuple[str, Experiment]]:
    """With and without groups, at equal epochs."""
    schedules = {12: EPOCHS_12, 36: EPOCHS_36, 50: EPOCHS_50}
    rows: dict[str, tuple[Recipe, dict[int, tuple[float, float]]]] = {
        "conditional-detr-r50": (R50, {12: (32.6, 37.6), 50: (40.9, 43.4)}),
        "conditional-detr-r50-dc5": (DC5, {12: (36.4, 41.2), 50: (43.7, 45.8)}),
        "dab-detr-r50": (DAB_R50, {12: (35.2, 39.1), 50: (42.2, 44.5)}),
        "dab-detr-r50-dc5": (DAB_DC5, {12: (37.5, 41.9), 50: (44.5, 46.7)}),
        "dn-detr-r50": (DN_R50, {12: (38.6, 40.6), 50: (44.0, 45.4)}),
        "dn-detr-r50-dc5": (DN_DC5, {12: (41.9, 44.5), 50: (47.5, 48.0)}),
        "dab-deformable-detr-r50": (DAB_DEFORMABLE, {12: (44.2, 45.7), 50: (48.1, 49.7)}),
        "dino-4scale-r50": (DINO_R50, {12: (49.4, 50.1), 36: (50.9, 51.3)}),
        "dino-4scale-swin-l": (SwinDINO(), {36: (58.0, 58.4)}),
    }
    for detector, (recipe, reported) in rows.items():
        for epochs, (baseline, group) in reported.items():
            settings = replace(schedules[epochs], recompute=isinstance(recipe, SwinDINO))
            name = f"table3/{detector}-{epochs}e"
            yield name, Experiment(recipe, settings, "Table 3, K = 1", baseline)
            yield (
                f"{name}-group",
                Experiment(replace(recipe, num_groups=K), settings, f"Table 3, K = {K}", group),
            )


def _masks() -> Iterator[tuple[str, Experiment]]:
    """Instance segmentation, mask AP."""
    for settings, *reported in ((MASKS_12, 38.5, 39.7), (MASKS_50, 43.7, 44.0)):
        name = f"masks/mask2former-r50-{settings.epochs:g}e"
        yield name, of_masks(Mask2Former(), settings, "Mask2Former, K = 1", reported[0])
        yield (
            f"{name}-group",
            of_masks(Mask2Former(num_groups=K), settings, f"Mask2Former, K = {K}", reported[1]),
        )


def _space() -> Iterator[tuple[str, Experiment]]:
    """Multi-view detection in space, NDS."""
    rows: dict[str, tuple[PETR, Any, float, float]] = {
        "petr-v99": (PETR(), Detection3DTask, 42.0, 45.0),
        "petrv2-v99": (PETRv2(), TwoFrameTask, 50.3, 51.3),
    }
    for detector, (recipe, task, baseline, group) in rows.items():
        name, grouped = f"scenes/{detector}-24e", replace(recipe, num_groups=K)
        yield name, Experiment(recipe, SCENES, "NDS, K = 1", baseline, task=task)
        yield f"{name}-group", Experiment(grouped, SCENES, f"NDS, K = {K}", group, task=task)


def _table7() -> Iterator[tuple[str, Experiment]]:
    """What makes Group DETR work, row by row; and the same on a CPU."""
    rows = (
        ("a", R50, TINY_CONDITIONAL, "(a) one-to-one", 32.6),
        (
            "b",
            NaiveOneToMany(inference_group=None),
            TinyNaiveOneToMany(inference_group=None),
            "(b) naive one-to-many",
            8.4,
        ),
        ("c", JointGroups(), TinyJointGroups(), "(c) groups, joint self-attention", 34.8),
        ("d", R50, TINY_CONDITIONAL, "(d) Group DETR", 37.6),
    )
    for row, full, tiny, about, reported in rows:
        groups, few = (1, 1) if row == "a" else (K, TINY_K)
        yield (
            f"table7/{row}",
            Experiment(replace(full, num_groups=groups), EPOCHS_12, f"Table 7 {about}", reported),
        )
        yield (
            f"table7/{row}-tiny",
            Experiment(replace(tiny, num_groups=few), TINY, f"Table 7 {about}, on a CPU"),
        )


def _fig8() -> Iterator[tuple[str, Experiment]]:
    """Denoising, groups, both and neither; and both with denoising in the primary group alone."""
    rows: tuple[tuple[str, Recipe, Recipe, bool, float | None], ...] = (
        ("none", DAB_R50, TinyDABDETR(), False, 35.2),
        ("dn", DN_R50, TinyDNDETR(), False, 38.6),
        ("group", DAB_R50, TinyDABDETR(), True, 39.1),
        ("dn-group", DN_R50, TinyDNDETR(), True, 40.6),
        ("dn-primary-group", DenoisingInPrimaryGroup(), TinyDenoisingInPrimaryGroup(), True, None),
    )
    for row, full, tiny, grouped, reported in rows:
        groups, few = (K, TINY_K) if grouped else (1, 1)
        yield (
            f"fig8/{row}",
            Experiment(replace(full, num_groups=groups), EPOCHS_12, f"Fig. 8, {row}", reported),
        )
        yield (
            f"fig8/{row}-tiny",
            Experiment(replace(tiny, num_groups=few), TINY, f"Fig. 8, {row}, on a CPU"),
        )


def _fig9() -> Iterator[tuple[str, Experiment]]:
    """More groups, until it saturates. The figure's ticks are not in the text: these are ours."""
    for groups in (1, 3, 5, 7, 9, 11, 13, 15):
        yield (
            f"fig9/k{groups}",
            Experiment(replace(R50, num_groups=groups), EPOCHS_12, f"Fig. 9, K = {groups}"),
        )


def _all() -> Iterator[tuple[str, Experiment]]:
    for part in (_presets, _table2, _table3, _masks, _space, _table7, _fig8, _fig9):
        for name, experiment in part():
            yield name, replace(experiment, recipe=replace(experiment.recipe, preset=name))


EXPERIMENTS: dict[str, Experiment] = dict(_all())


def experiment(name: str) -> Experiment:
    """The experiment or preset called ``name``; UsageError with the nearest names if there is none."""
    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=3, cutoff=0.5) or list(EXPERIMENTS)[:3]
        raise UsageError(
            f"there is no model {name!r}",
            remedy=f"did you mean {', '.join(near)}? `groupdetr presets` lists all",
        )
    return EXPERIMENTS[name]


def recipe_from(described: dict[str, Any]) -> Recipe:
    """The recipe that ``dataclasses.asdict`` made a dict of."""
    known = {field.name for field in fields(experiment(described["preset"]).recipe)}
    options = {
        name: value for name, value in described.items() if name in known and name != "preset"
    }
    return experiment(described["preset"]).recipe.with_options(**options)
