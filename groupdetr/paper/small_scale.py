"""The small scale: detectors, data and settings with which the paper's questions take minutes.

This is the only place that has them. A number that is changed here changes the trainings of every
table and figure, and of the demo: new trainings have new names, and old ones stay.

The paper's regime is the aim. There the images cost more than the queries, so that a step with K
groups takes 1.2 times as long as one without, and the backbone is pretrained. So the backbone here
is EfficientNet-Lite0 with its installed ImageNet weights, images have 128 pixels, and a group has
20 queries, because an image has five objects at most. All settings hold for every K alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from groupdetr.data import synthetic
from groupdetr.data.nuscenes import synthetic as synthetic_scenes
from groupdetr.data.nuscenes.synthetic import SyntheticNuScenesConfig
from groupdetr.data.synthetic import SyntheticConfig
from groupdetr.experiments.training_settings import (
    LITE_SETTINGS,
    MICRO_SETTINGS,
    TINY_SCENES_SETTINGS,
    TINY_SETTINGS,
)
from groupdetr.paper.trainings import Field
from groupdetr.registry import experiment
from groupdetr.settings import Settings

# K of all trainings with groups. The paper has 11 groups of 300 queries.
GROUPS = 6
# The numbers of groups of Fig. 9.
SWEEP = (1, 2, 4, 6, 8, 11)

# Detectors with more channels are too large for the small scale.
MAX_CHANNELS = 128

# The drawn images.
SHAPES = SyntheticConfig(
    image_size=192,
    num_classes=4,
    max_objects=5,
    texture=0.3,
    occlusion=0.2,
    sizes=(0.1, 0.4, 0.5),
    seed=1,
)
SHAPES_COUNTS = {"train": 2000, "val": 300}  # images of each split
# Other images, on which vit-h pretrains a detector: more classes and objects, as Objects365 has.
MANY_SHAPES = replace(SHAPES, num_classes=8, max_objects=8, seed=2)
# The drawn scenes of six cameras.
SCENES = SyntheticNuScenesConfig(
    train_scenes=120, val_scenes=20, samples=8, width=320, height=180, sweeps=False, seed=1
)

# Epochs: those of the demo and of Tables 2, 3 and 7, in place of the paper's 12, and those of
# Table 4, in place of its 50. As in the paper, the short training ends long before AP is stable.
# A shorter one mostly measures when a training leaves the plateau at its beginning, which depends
# on the seed: after three epochs, AP of the same detector differs by up to 15 between seeds.
SHORT, LONG = 4.0, 16.0
SCENES_SHORT = 8.0
# Lengths of the trainings of the item `convergence`.
LENGTHS = (2.0, 4.0, 8.0, 16.0, 32.0)

# Of the learning rates 1e-3, 2e-3 and 4e-3, 2e-3 is the best for one group and for six alike. They
# were tried with Conditional DETR and seed 100, which no published result uses.
LITE = replace(
    LITE_SETTINGS,
    imgsz=128,
    batch=8,
    lr=2e-3,
    backbone_lr=4e-4,
    augment="flip",
    eval_every=1.0,
    instability_images=SHAPES_COUNTS["val"],
)
TINY = replace(TINY_SETTINGS, eval_every=1.0, instability_images=SHAPES_COUNTS["val"])
MICRO = replace(MICRO_SETTINGS, eval_every=1.0, instability_images=SHAPES_COUNTS["val"])
TINY_SCENES = replace(TINY_SCENES_SETTINGS, eval_every=1.0)


@dataclass(frozen=True)
class SmallDetector:
    """How a detector is trained at small scale, with any K.

    ``step_seconds`` are the CPU seconds of a step with one group and with `GROUPS`, measured over
    steps 4 to 10 on a busy machine with two cores of an AMD EPYC (Zen 4), from which expected
    minutes are computed. On a quiet machine they are smaller.
    """

    preset: str
    settings: Settings = LITE
    queries: int = 20  # N, of a group
    fields: tuple[Field, ...] = ()  # of the recipe
    step_seconds: tuple[float, float] = (0.15, 0.2)
    groups: int = GROUPS  # K of trainings with groups


# The presets have 128 channels. With 64, the queries of six groups cost less beside the backbone: a
# step of Conditional DETR takes 1.24 times that of one group, instead of 1.49.
NARROW: tuple[Field, ...] = (("channels", 64),)
# DC5: the last stage of the backbone keeps the stride of 16. Others use the stage before it.
DC5: tuple[Field, ...] = (*NARROW, ("dilated", True))

# By family: what stands for a detector of the paper.
DETECTORS = {
    "conditional-detr": SmallDetector(
        "conditional-detr-lite", fields=NARROW, step_seconds=(0.12, 0.15)
    ),
    "conditional-detr-dc5": SmallDetector(
        "conditional-detr-lite", fields=DC5, step_seconds=(0.35, 0.40)
    ),
    "dab-detr": SmallDetector("dab-detr-lite", fields=NARROW, step_seconds=(0.12, 0.15)),
    "dab-detr-dc5": SmallDetector("dab-detr-lite", fields=DC5, step_seconds=(0.35, 0.40)),
    "dn-detr": SmallDetector("dn-detr-lite", fields=NARROW, step_seconds=(0.13, 0.21)),
    "dn-detr-dc5": SmallDetector("dn-detr-lite", fields=DC5, step_seconds=(0.36, 0.46)),
    "dab-deformable-detr": SmallDetector("dab-deformable-detr-lite", step_seconds=(0.16, 0.25)),
    "dino": SmallDetector("dino-lite", step_seconds=(0.22, 0.44)),
    "mask2former": SmallDetector("mask2former-lite", step_seconds=(0.43, 0.45)),
    "petr": SmallDetector("petr-tiny", TINY_SCENES, queries=100, step_seconds=(0.54, 0.81)),
    "petrv2": SmallDetector("petrv2-tiny", TINY_SCENES, queries=100, step_seconds=(0.97, 1.51)),
    "rf-detr": SmallDetector("rf-detr-micro", MICRO, step_seconds=(0.19, 0.25), groups=13),
    "dino-vit": SmallDetector("dino-vit-tiny", TINY, step_seconds=(0.19, 0.36)),
}


def small_detector(preset: str) -> SmallDetector | None:
    """Return how a preset is trained at small scale; None if it is too large for that.

    A small detector that is not in `DETECTORS`, such as one of a plugin, is trained like a -tiny
    preset.
    """
    for detector in DETECTORS.values():
        if detector.preset == preset:
            return detector  # The first one of a preset is not that with DC5.
    recipe = experiment(preset).recipe
    if recipe.channels > MAX_CHANNELS:
        return None
    groups = recipe.num_groups if recipe.num_groups > 1 else GROUPS
    return SmallDetector(preset, TINY, groups=groups)


@dataclass(frozen=True)
class DrawnData:
    """A dataset that is drawn: its name, and how it is written."""

    name: str
    description: str
    num_train: int
    content: tuple[object, ...]  # everything that the dataset depends on
    write: Callable[[Path], None]

    @property
    def identity(self) -> str:
        """A short hash of everything that the dataset depends on."""
        content = json.dumps(self.content, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:6]


def _images(name: str, config: SyntheticConfig) -> DrawnData:
    def write(folder: Path) -> None:
        synthetic.write(config, folder, SHAPES_COUNTS)

    train, val = SHAPES_COUNTS["train"], SHAPES_COUNTS["val"]
    return DrawnData(
        name,
        f"{train} training and {val} validation images that are drawn",
        train,
        (synthetic.REVISION, asdict(config), dict(SHAPES_COUNTS)),
        write,
    )


def shapes() -> DrawnData:
    """Return the drawn images of all 2D items."""
    return _images("shapes", SHAPES)


def many_shapes() -> DrawnData:
    """Return the drawn images on which a detector is pretrained."""
    return _images("manyshapes", MANY_SHAPES)


def scenes() -> DrawnData:
    """Return the drawn scenes of the 3D items."""
    return DrawnData(
        "scenes",
        f"{SCENES.train_scenes} training and {SCENES.val_scenes} validation scenes of six cameras "
        "that are drawn",
        SCENES.train_scenes * SCENES.samples,
        (asdict(SCENES),),
        partial(synthetic_scenes.write, SCENES),
    )
