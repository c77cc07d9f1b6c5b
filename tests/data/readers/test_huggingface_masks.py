"""Masks of Hugging Face datasets: polygons and run lengths in the column `segmentation`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.data.layouts import load
from groupdetr.errors import DataError
from groupdetr.structures.detections import decode_mask

POLYGON = [[2, 3, 12, 3, 12, 8, 2, 8]]  # 10 x 5 pixels
RUN_LENGTHS = {"size": [20, 30], "counts": [0, 20, 580]}  # the first column
OBJECTS = {
    "bbox": [[2, 3, 10, 5], [0, 0, 1, 20]],
    "categories": ["leaf", "stem"],
    "segmentation": [POLYGON, RUN_LENGTHS],
}


def write(root: Path, objects: object) -> Path:
    """Write one image of 30 x 20 pixels with objects, as train and as validation."""
    for split in ("train", "validation"):
        folder = root / split
        folder.mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(folder / "0.png")
        row = {"file_name": "0.png", "objects": objects}
        (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    return root


def test_polygons_and_run_lengths_are_the_masks_of_the_objects(tmp_path: Path) -> None:
    (record,) = load(write(tmp_path, OBJECTS), masks=True).splits["train"].records
    polygon, run_lengths = record.object_masks() or ()
    assert decode_mask(polygon.to_rle(20, 30))[3:8, 2:12].sum() == 50
    assert decode_mask(run_lengths.to_rle(20, 30))[:, 0].all()


def test_objects_without_masks_are_refused_with_their_line(tmp_path: Path) -> None:
    boxes = {name: OBJECTS[name] for name in ("bbox", "categories")}
    with pytest.raises(DataError, match="it has no segmentation") as error:
        load(write(tmp_path, boxes), masks=True)
    assert "line 1, object 1" in str(error.value)
