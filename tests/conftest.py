"""What several tests share: small data, and the detectors that every claim is made of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

if shutil.which("nvidia-smi") is None:
    # before anything imports Triton, as torchvision does: kernels run in its interpreter where there is no GPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from groupdetr.data.nuscenes import synthetic as nuscenes
from groupdetr.data.synthetic import SyntheticConfig, write
from groupdetr.experiments import experiment


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set: 24 training and 6 validation pictures of 48 pixels, 3 classes."""
    folder = tmp_path_factory.mktemp("shapes")
    write(
        SyntheticConfig(image_size=48, num_classes=3, max_objects=3),
        folder,
        {"train": 24, "val": 6},
    )
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic nuScenes: 4 training and 4 validation samples of six pictures of 160 x 90 pixels."""
    root = tmp_path_factory.mktemp("nuscenes")
    nuscenes.write(nuscenes.SyntheticConfig(samples=4, width=160, height=90), root)
    return root


@pytest.fixture(scope="session")
def data_for(shapes: Path, scenes: Path) -> Callable[[str], Path]:
    """What a detector, told by its preset, is trained on."""
    return lambda preset: scenes if experiment(preset).task.sees == "scenes" else shapes


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, from the environment variable GROUPDETR_TEST_DATA."""
    folder = os.environ.get("GROUPDETR_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GROUPDETR_TEST_DATA does not name the folder of real data sets")
    return Path(folder)
