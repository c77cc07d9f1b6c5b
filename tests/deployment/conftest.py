"""A small detector that is exported once to every format."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.workflows.export import export
from tests.deployment.exports import SCORE_THRESHOLD, SMALL, write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    return write_weights(file, score_threshold=SCORE_THRESHOLD, **SMALL)


@pytest.fixture(scope="session")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A function that exports the detector to a format and returns the file, once for each."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def file(format: str, ending: str) -> Path:
        return export(weights, format, folder / f"small{ending}", dynamic_batch=True).file

    return file


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide, a high and a square image, none of them of the size that a graph is recorded with."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    files = []
    for width, height in ((190, 50), (70, 120), (64, 64)):
        # Random pixels of 10 x 10 blocks have edges, as photos have.
        blocks = generator.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
        file = folder / f"{width}.png"
        pixels = blocks.repeat(10, 0).repeat(10, 1)[:height, :width]
        Image.fromarray(pixels).save(file)
        files.append(file)
    return files
