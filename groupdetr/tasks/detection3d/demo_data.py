"""The synthetic scenes of the 3D demo, and the settings of its training."""

from __future__ import annotations

from dataclasses import replace

from groupdetr.data.nuscenes.synthetic import SyntheticNuScenesConfig
from groupdetr.experiments import TINY_SCENES_SETTINGS

DEMO_DATA = SyntheticNuScenesConfig(
    train_scenes=120, val_scenes=20, samples=8, width=320, height=180, sweeps=False, seed=1
)
DEMO_SETTINGS = replace(TINY_SCENES_SETTINGS, epochs=10, eval_every=1)
