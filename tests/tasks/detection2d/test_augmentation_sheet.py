"""`groupdetr check --show-augment`: what training sees, as an image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.cli.main import main
from groupdetr.workflows.check import draw_augmentation


def test_the_sheet_shows_images_before_and_after_augmentation(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without augmentation, all images of a row are equal."""
    command = ["check", str(shapes), "--no-decode", "--out", str(tmp_path), "--imgsz", "64"]
    cells = {}
    for augment in ("none", "flip", "none+photometric", "none+mosaic"):
        assert main([*command, "--show-augment", "3", "--augment", augment]) == 0
        assert str(tmp_path / "augmentation.png") in capsys.readouterr().out
        sheet = np.asarray(Image.open(tmp_path / "augmentation.png"))
        rows = np.split(sheet[8:], 3)
        cells[augment] = [np.split(row[:320, 8:], 4, axis=1) for row in rows]
    for row in cells["none"]:
        assert all(np.array_equal(cell, row[0]) for cell in row)
    for augment in ("flip", "none+photometric", "none+mosaic"):
        assert any(not np.array_equal(cell, row[0]) for row in cells[augment] for cell in row)
    (tmp_path / "augmentation.png").write_bytes(b"mine")
    assert main([*command, "--show-augment", "3"]) == 2
    assert (tmp_path / "augmentation.png").read_bytes() == b"mine"
    assert main(["check", str(shapes), "--show-augment", "3"]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_squares_fill_their_cells(tmp_path: Path) -> None:
    """A wide image has white above and below in its cell, unless it becomes a square."""
    Image.new("RGB", (90, 30)).save(tmp_path / "wide.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 5, 30, 20], "area": 600}
    content = {
        "images": [{"id": 1, "file_name": "wide.png", "width": 90, "height": 30}],
        "annotations": [{**box, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    for square_images in (False, True):
        sheet = draw_augmentation(
            tmp_path / "train.json",
            tmp_path,
            augment="none",
            count=1,
            imgsz=64,
            square_images=square_images,
        )
        cell = np.asarray(sheet)[8:328, 8:328]
        assert (cell[[0, -1]] == 255).all() == (not square_images)
