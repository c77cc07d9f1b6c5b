"""Fixtures: a small valid dataset that tests put faults into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.check import CheckReport, check


class Sample:
    """A valid dataset: three train images and one val image, two classes, five boxes.

    Images have 64 x 48 pixels. Tests put faults into the dataset. Annotation files are written by
    `save`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "images").mkdir(parents=True)
        for number in range(4):
            self.draw(f"{number}.jpg", seed=number)
        self.train = _content(range(3), [(0, 1), (0, 2), (1, 1), (2, 2)])
        self.val = _content([3], [(3, 1)])

    def draw(self, name: str, seed: int, size: tuple[int, int] = (64, 48)) -> Path:
        """Write an image of random pixels and of ``size`` (width, height)."""
        pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        path = self.root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    def image(self, number: int = 0) -> Path:
        return self.root / "images" / f"{number}.jpg"

    @property
    def box(self) -> list[Any]:
        """The first train box. Tests change it in place."""
        return self.train["annotations"][0]["bbox"]

    def save(self) -> Path:
        for name in ("train", "val"):
            (self.root / f"{name}.json").write_text(json.dumps(getattr(self, name)))
        return self.root

    def check(self, **options: Any) -> CheckReport:
        return check(self.save(), **options)


def _content(images: Any, annotations: list[tuple[int, int]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in images],
        "annotations": [
            {
                "id": n + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [10 + n, 5, 20, 30],
                "area": 600,
                "iscrowd": 0,
            }
            for n, (image, category) in enumerate(annotations)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return Sample(tmp_path / "sample")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A sample for many examples of one module. Each example must save it again."""
    return Sample(tmp_path_factory.mktemp("fuzz") / "sample")
