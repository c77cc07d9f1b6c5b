"""Masks of Pascal VOC: PNG files whose pixels are the numbers of the objects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupdetr.data.check import check
from groupdetr.data.layouts import load, load_split
from groupdetr.data.records import Record
from groupdetr.structures.detections import decode_mask
from groupdetr.workflows.convert import convert

# The objects of two images: a number that does not count, name, and box as x0, y0, x1, y1 from 1 on
OBJECTS = {
    "a": [("dog", (3, 5, 20, 24)), ("cat", (15, 15, 40, 30))],
    "b": [("dog", (1, 1, 10, 10))],
    "c": [("cat", (5, 5, 9, 9))],
    "d": [("cat", (2, 2, 8, 8)), ("dog", (20, 2, 30, 20))],
}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Four images of 48 x 32 pixels, all but c with masks: an ellipse in each box."""
    root = tmp_path / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationObject", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    for name, objects in OBJECTS.items():
        Image.new("RGB", (48, 32)).save(root / f"JPEGImages/{name}.jpg")
        elements = []
        for label, corners in objects:
            box = "".join(
                f"<{tag}>{value}</{tag}>"
                for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners)
            )
            elements.append(f"<object><name>{label}</name><bndbox>{box}</bndbox></object>")
        size = "<size><width>48</width><height>32</height></size>"
        xml = f"<annotation>{size}{''.join(elements)}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(xml)
        if name != "c":
            image = Image.fromarray(numbers(name))
            image.putpalette([value for index in range(256) for value in (index, 0, 255 - index)])
            image.save(root / f"SegmentationObject/{name}.png")
            image.save(root / f"SegmentationClass/{name}.png")
    for folder, lists in {
        "Main": {"train": "abc", "val": "d"},
        "Segmentation": {"train": "ab", "val": "d"},
    }.items():
        (root / "ImageSets" / folder).mkdir(parents=True)
        for split, names in lists.items():
            (root / f"ImageSets/{folder}/{split}.txt").write_text("\n".join(names) + "\n")
    return root


def numbers(name: str) -> np.ndarray:
    """The pixels of a file of masks: the objects, with an edge of 255 around each."""
    y, x = np.mgrid[:32, :48]
    pixels = np.zeros((32, 48), dtype=np.uint8)
    for number, (_, (x0, y0, x1, y1)) in enumerate(OBJECTS[name], 1):
        centre = (x0 + x1 - 1) / 2 - 0.5, (y0 + y1 - 1) / 2 - 0.5
        radii = (x1 - x0 + 1) / 2, (y1 - y0 + 1) / 2
        distance = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
        pixels[distance <= 1] = number
        pixels[(distance > 1) & (distance < 1.1)] = 255
    return pixels


def assert_masks(record: Record) -> None:
    masks = record.object_masks()
    assert masks is not None
    expected = numbers(record.path.stem)
    for number, mask in enumerate(masks, 1):
        pixels = decode_mask(mask.to_rle(record.height, record.width))
        np.testing.assert_array_equal(pixels, expected == number)


def test_the_lists_of_segmentation_have_the_images_with_masks(voc: Path) -> None:
    data = load(voc, masks=True)
    assert [record.path.stem for record in data.splits["train"].records] == ["a", "b"]
    assert [record.path.stem for record in data.splits["val"].records] == ["d"]
    for split in data.splits.values():
        for record in split.records:
            assert_masks(record)
    assert_masks(load_split(voc, split="val", masks=True).records[0])
    assert check(voc, masks=True).verdict != "refuse"


def test_a_detector_of_boxes_has_all_images_and_reads_no_masks(
    voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groupdetr.data.readers.pascal_voc.read_masks", None)
    data = load(voc)
    assert [record.path.stem for record in data.splits["train"].records] == ["a", "b", "c"]
    assert all(record.segmentations is None for record in data.splits["train"].records)


def test_convert_keeps_the_masks_and_the_images_without_any(voc: Path, tmp_path: Path) -> None:
    convert(voc, "coco", tmp_path / "coco")
    assert len(load(tmp_path / "coco").splits["train"]) == 3
    (tmp_path / "VOC2012/ImageSets/Main/train.txt").write_text("a\nb\n")
    convert(voc, "coco", tmp_path / "segmented")
    for record in load(tmp_path / "segmented", masks=True).splits["train"].records:
        assert_masks(record)


def test_files_of_masks_that_cannot_be_used_are_findings_with_their_name(voc: Path) -> None:
    Image.new("RGB", (48, 32)).save(voc / "SegmentationObject/a.png")
    (voc / "SegmentationObject/b.png").write_bytes(b"no image")
    report = check(voc, masks=True, decode=False)
    assert report.verdict == "refuse"
    findings = report.errors + report.warnings
    named = {Path(item.file).name: item for item in findings if item.code == "mask-malformed"}
    assert named.keys() == {"a.png", "b.png"}
    assert "its pixels are colours (mode RGB)" in named["a.png"].what
    report = check(voc, masks=False, decode=False)
    assert report.verdict != "refuse"


def test_an_object_without_a_pixel_and_a_file_of_another_size_are_named(voc: Path) -> None:
    Image.fromarray(np.where(numbers("a") == 2, 0, numbers("a"))).save(
        voc / "SegmentationObject/a.png"
    )
    Image.fromarray(numbers("b")[:, :40]).save(voc / "SegmentationObject/b.png")
    report = check(voc, masks=True, decode=False)
    records = {
        item.code: (Path(item.file).name, item.record) for item in report.errors + report.warnings
    }
    assert records["mask-missing"] == ("a.xml", "object 2")
    assert records["mask-size"] == ("b.xml", "object 1")


def test_masks_go_to_voc_and_back(voc: Path, tmp_path: Path) -> None:
    """Image c has no masks, and is in the list of boxes alone."""
    result = convert(voc, "voc", tmp_path / "copy")
    assert not result.conversion.notes
    for name in ("a", "b", "d"):
        pixels = np.asarray(Image.open(tmp_path / f"copy/SegmentationObject/{name}.png"))
        expected = numbers(name)
        np.testing.assert_array_equal(pixels, np.where(expected == 255, 0, expected))
    assert len(load(tmp_path / "copy").splits["train"]) == 3
    data = load(tmp_path / "copy", masks=True)
    assert [len(split) for split in data.splits.values()] == [2, 1]
    with Image.open(tmp_path / "copy/SegmentationObject/a.png") as image:
        palette = image.getpalette()
        assert palette is not None
        # Those of the development kit: maroon, green, and the bright edge.
        assert palette[3:9] == [128, 0, 0, 0, 128, 0]
        assert palette[-3:] == [224, 224, 192]


def test_of_masks_that_overlap_the_smaller_one_is_in_front_and_the_loss_is_counted(
    tmp_path: Path,
) -> None:
    root = tmp_path / "coco"
    root.mkdir()
    Image.new("RGB", (48, 32)).save(root / "a.png")
    boxes = [[10, 10, 10, 10], [0, 0, 40, 30]]
    annotations = []
    for number, (x, y, w, h) in enumerate(boxes, 1):
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        entry = {"id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h]}
        annotations.append(entry | {"area": w * h, "iscrowd": 0, "segmentation": [polygon]})
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 32}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": annotations,
    }
    (root / "train.json").write_text(json.dumps(content))
    result = convert(root, "voc", tmp_path / "voc")
    assert result.conversion.notes == {"masks that lost the pixels that another one has, too": 1}
    pixels = np.asarray(Image.open(tmp_path / "voc/SegmentationObject/a.png"))
    assert (pixels == 1).sum() == 100
    assert (pixels == 2).sum() == 40 * 30 - 100


def test_lists_name_files_in_subfolders(voc: Path) -> None:
    """CVAT keeps the folders of the images, in which file names may occur again."""

    def masks() -> dict[str, list[list[object]]]:
        splits = load(voc, masks=True).splits
        return {
            name: [
                [mask.to_rle(32, 48) for mask in record.object_masks() or ()]
                for record in split.records
            ]
            for name, split in splits.items()
        }

    expected = masks()
    for folder in ("Annotations", "JPEGImages", "SegmentationObject"):
        for file in sorted((voc / folder).iterdir()):
            (voc / folder / file.stem).mkdir()
            file.rename(voc / folder / file.stem / f"1{file.suffix}")
    for file in voc.glob("ImageSets/*/*.txt"):
        file.write_text("".join(f"{name}/1\n" for name in file.read_text().split()))
    assert masks() == expected
