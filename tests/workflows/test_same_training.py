"""The same images as COCO, YOLO and Pascal VOC give the same training, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from groupdetr.workflows.convert import convert
from tests.runs import train


def with_whole_pixels(shapes: Path, out: Path) -> Path:
    """Write the dataset with classes in alphabetical order, and boxes of whole pixels.

    All three formats hold these, and objects of 2 by 2 pixels or more.
    """
    shutil.copytree(shapes, out)
    for file in (out / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"].sort(key=lambda category: category["name"])
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [int(x), int(y), max(2, int(width)), max(2, int(height))]
            annotation.pop("segmentation", None)
        file.write_text(json.dumps(content))
    return out


def losses(run: Path) -> list[dict[str, object]]:
    """Return the losses and the AP that a run logged, without times and paths."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "loss" in key or "AP" in key}
        for line in lines
    ]


@pytest.fixture(scope="module")
def coco(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_whole_pixels(shapes, tmp_path_factory.mktemp("whole") / "coco")


@pytest.fixture(scope="module")
def coco_run(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(coco, tmp_path_factory.mktemp("run") / "coco", "--epochs", "1")


@pytest.mark.parametrize("target", ["yolo", "voc"])
def test_a_training_is_the_same_in_every_format(
    target: Literal["yolo", "voc"], coco: Path, coco_run: Path, tmp_path: Path
) -> None:
    data = convert(coco, target, tmp_path / target).folder
    run = train(data, tmp_path / "run", "--epochs", "1")
    assert any(losses(run))
    assert losses(run) == losses(coco_run)
    files = [folder / "weights/best.safetensors" for folder in (run, coco_run)]
    weights, others = map(load_file, files)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
