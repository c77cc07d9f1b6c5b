"""Coloured masks of CVAT: the colours of classes in labelmap.txt, a colour for each object."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.check import check
from groupdetr.data.layouts import load
from groupdetr.errors import DataError
from groupdetr.structures.detections import decode_mask

LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,128,0::\ndog:10,10,128::\ncat:10,128,0::\n"
)
COLOURS = {"dog": (10, 10, 128), "cat": (10, 128, 0)}
BACKGROUND = (0, 128, 0)
OBJECT_COLOURS = [(128, 0, 0), (0, 128, 0), (128, 128, 0)]  # of Pascal VOC: objects 1, 2 and 3
# Class and window of each object: rows and columns. The second object of a covers a part of the
# first one; the first one of b is not connected.
OBJECTS = {
    "a": [("cat", np.s_[2:20, 3:30]), ("dog", np.s_[10:30, 20:40])],
    "sub/b": [("dog", np.s_[5:9, 0:48:2]), ("dog", np.s_[20:32, 1:3]), ("cat", np.s_[0:1, 0:1])],
}


def labels(name: str) -> np.ndarray:
    """The numbers of the objects, from 1 on: [32,48]."""
    pixels = np.zeros((32, 48), dtype=np.uint8)
    for number, (_, window) in enumerate(OBJECTS[name], 1):
        pixels[window] = number
    return pixels


def save(file: Path, colours: list[tuple[int, int, int]], pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(colours, dtype=np.uint8)[pixels]).save(file)


@pytest.fixture
def cvat(tmp_path: Path) -> Path:
    """Two images with objects and one without, whose masks CVAT does not write."""
    root = tmp_path / "task"
    for name in (*OBJECTS, "empty"):
        (root / "JPEGImages" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 32)).save(root / f"JPEGImages/{name}.jpg")
    for name, objects in OBJECTS.items():
        classes = [BACKGROUND, *(COLOURS[label] for label, _ in objects)]
        save(root / f"SegmentationClass/{name}.png", classes, labels(name))
        instances = [(0, 0, 0), *OBJECT_COLOURS]
        save(root / f"SegmentationObject/{name}.png", instances, labels(name))
    (root / "labelmap.txt").write_text(LABELMAP)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/default.txt").write_text("a\nsub/b\nempty\n")
    return root


@pytest.mark.parametrize("folder", [".", ".."])
def test_objects_have_the_colour_of_their_class_and_a_colour_of_their_own(
    folder: str, cvat: Path
) -> None:
    """The archive may be unpacked into a folder of its own."""
    data = load(cvat / folder, masks=True)
    assert [category.name for category in data.categories] == ["dog", "cat"]
    records = {}
    for split in data.splits.values():
        records |= {record.path.stem: record for record in split.records}
    assert records.keys() == {"a", "b", "empty"}
    assert len(records["empty"].boxes) == 0
    for name, objects in OBJECTS.items():
        record = records[Path(name).name]
        masks = record.object_masks()
        assert masks is not None
        read = set()
        for label, box, mask in zip(record.labels, record.corners, masks):
            pixels = decode_mask(mask.to_rle(32, 48)).astype(bool)
            left, top, right, bottom = map(int, box)
            rows, columns = pixels.nonzero()
            corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert (left, top, right, bottom) == corners
            (number,) = np.unique(labels(name)[pixels])
            assert (labels(name) == number).sum() == pixels.sum()
            read.add((int(number), data.categories[label].name))
        assert read == {(number, label) for number, (label, _) in enumerate(objects, 1)}


def test_lists_with_the_name_of_a_split_are_that_split_and_others_train(cvat: Path) -> None:
    lists = cvat / "ImageSets/Segmentation"
    (lists / "Validation.txt").write_text("a\n")
    data = load(cvat)
    assert [record.path.stem for record in data.splits["train"].records] == ["b", "empty"]
    assert [record.path.stem for record in data.splits["val"].records] == ["a"]


def test_of_several_datasets_in_one_folder_none_is_left_out(cvat: Path) -> None:
    """Two tasks of CVAT may be unpacked beside each other."""
    expected = [record.path for record in load(cvat).splits["train"].records]
    assert [record.path for record in load(cvat.parent).splits["train"].records] == expected
    shutil.copytree(cvat, cvat.parent / "other")
    with pytest.raises(DataError, match="'other' and 'task'"):
        load(cvat.parent)


def test_what_cannot_be_read_is_named_with_its_file(cvat: Path) -> None:
    (cvat / "labelmap.txt").write_text(LABELMAP.replace("cat:10,128,0", "cat:10,128,1"))
    (cvat / "JPEGImages/empty.jpg").unlink()
    save(cvat / "SegmentationClass/sub/b.png", [BACKGROUND], np.zeros((8, 8), dtype=np.uint8))
    report = check(cvat, masks=True, decode=False)
    assert report.verdict == "refuse"
    named = {item.code: (item.record, item.what) for item in report.errors}
    assert named["mask-colour"] == ("a", "the object of colour 128,0,0 has the class of 10,128,0")
    assert named["mask-image"][1] == "the image 'empty' is not in JPEGImages"
    assert named["mask-file"] == (
        "sub/b",
        "it has 48 x 32 pixels, and that of SegmentationClass 8 x 8",
    )
    for wrong in ("dog", "cat:1,2", "cat:1,2,256::", "dog:1,1,1::", "cat:10,10,128::"):
        (cvat / "labelmap.txt").write_text(f"dog:10,10,128::\n{wrong}\n")
        with pytest.raises(DataError, match=r"labelmap\.txt") as raised:
            load(cvat)
        assert "name:red,green,blue" in raised.value.remedy
