"""`groupdetr check --show-augment`: what training sees, as an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.cli.main import main


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
