"""The synthetic dataset of the 2D demo, and the settings of its training."""

from __future__ import annotations

from dataclasses import replace

from groupdetr.data.synthetic import SyntheticConfig
from groupdetr.experiments import TINY_SETTINGS

DEMO_DATA = SyntheticConfig(
    image_size=192,
    num_classes=4,
    max_objects=5,
    texture=0.3,
    occlusion=0.2,
    sizes=(0.1, 0.4, 0.5),
    seed=1,
)
DEMO_COUNTS = {"train": 2000, "val": 300}  # images of each split
DEMO_SETTINGS = replace(TINY_SETTINGS, epochs=8, imgsz=64, augment="flip", eval_every=1)
