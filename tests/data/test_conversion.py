"""Datasets in another format: nothing is lost that the format can hold, the rest is listed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from faster_coco_eval.core import mask as coco_mask
from PIL import Image, ImageOps

from groupdetr.cli.main import main
from groupdetr.data.check import check
from groupdetr.data.dataset import DetectionDataset
from groupdetr.data.image_decoding import load_image, load_pixels
from groupdetr.data.layouts import load
from groupdetr.data.records import CocoSplit
from groupdetr.data.transforms import val_transform
from groupdetr.errors import DataError, UsageError
from groupdetr.workflows.convert import convert
from tests.data.conftest import Sample
from tests.data.readers.test_same_dataset import assert_same_dataset


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("name", ["bccd", "tiny_coco"])
def test_real_datasets_go_there_and_back(
    to: Any, name: str, real_data: Path, tmp_path: Path
) -> None:
    """Crowds are left out of YOLO. All else is the same, bit for bit, also the order of classes."""
    source, there, back = real_data / name, tmp_path / "there", tmp_path / "back"
    convert(source, to, there, link=True)
    result = convert(there, "coco", back, link=True)
    assert sum(result.conversion.images.values()) == sum(map(len, load(source).splits.values()))
    if to == "yolo" and name == "tiny_coco":
        return  # see the test of masks
    assert_same_dataset(load(back), load(source))
    for split in ("train", "val"):
        for record, other in zip(
            load(back).splits[split].records, load(source).splits[split].records
        ):
            assert np.array_equal(record.crowd, other.crowd)
    assert check(there, decode=False).verdict != "refuse"


def test_a_split_without_objects_can_be_read_back_from_yolo(sample: Sample, tmp_path: Path) -> None:
    """Images without any label file are images whose labels are missing."""
    sample.val["annotations"] = []
    source = sample.save()
    convert(source, "yolo", tmp_path / "out")
    assert_same_dataset(load(tmp_path / "out"), load(source))


def test_folders_of_yolo_are_relative_to_the_description(sample: Sample, tmp_path: Path) -> None:
    """Ultralytics takes a relative 'path' as one of the folder that it is started in."""
    convert(sample.save(), "yolo", tmp_path / "out")
    description = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert "path" not in description
    assert (tmp_path / "out" / description["train"]).exists()


def test_masks_go_to_yolo_and_back(real_data: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    result = convert(real_data / "tiny_coco", "yolo", there, link=True)
    assert result.conversion.notes["crowd regions left out"] == 10
    assert any("joined" in note for note in result.conversion.notes)
    convert(there, "coco", back, link=True)
    source = load(real_data / "tiny_coco", masks=True)
    for split, data in load(back, masks=True).splits.items():
        for record, other in zip(data.records, source.splits[split].records):
            assert record.segmentations is not None
            assert other.segmentations is not None
            masks = [s for s, crowd in zip(other.segmentations, other.crowd) if not crowd]
            assert len(record.segmentations) == len(masks)
            for mask, expected in zip(record.segmentations, masks):
                size = (record.height, record.width)
                # The bridges between the parts of a mask may rasterise to a few pixels.
                assert _area(mask.to_rle(*size)) == pytest.approx(
                    _area(expected.to_rle(*size)), abs=40, rel=0.02
                )


def _area(rle: Any) -> float:
    return float(coco_mask.area(rle))


def test_keys_that_are_unknown_here_are_kept_in_coco(sample: Sample, tmp_path: Path) -> None:
    sample.train["info"] = {"year": 2026}
    sample.train["annotations"][0]["keypoints"] = [1, 2, 2]
    sample.train["categories"][0]["skeleton"] = [[1, 2]]
    convert(sample.save(), "coco", tmp_path / "out")
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert content["info"] == {"year": 2026}
    assert content["annotations"][0]["keypoints"] == [1, 2, 2]
    assert content["categories"][0]["skeleton"] == [[1, 2]]


def test_null_and_a_split_without_annotations_can_be_converted(
    sample: Sample, tmp_path: Path
) -> None:
    """As COCO's test-dev. In other programs null is neither an area nor a flag."""
    sample.train["annotations"][0] |= {"area": None, "iscrowd": None}
    root = sample.save()
    images = [{"id": 9, "file_name": "3.jpg", "width": 64, "height": 48}]
    test = {"images": images, "categories": sample.train["categories"]}
    (root / "test.json").write_text(json.dumps(test))
    convert(root, "coco", tmp_path / "out")
    written = tmp_path / "out/annotations"
    first = json.loads((written / "instances_train.json").read_text())["annotations"][0]
    assert (first["area"], first["iscrowd"]) == (600, 0)
    assert json.loads((written / "instances_test.json").read_text())["annotations"] == []


@pytest.mark.parametrize(("to", "link"), [("coco", False), ("yolo", True), ("voc", False)])
def test_an_image_that_is_missing_is_named_before_anything_is_written(
    to: Any, link: bool, sample: Sample, tmp_path: Path
) -> None:
    sample.image(3).unlink()
    with pytest.raises(DataError, match="no such image") as error:
        convert(sample.save(), to, tmp_path / "out", link=link)
    assert error.value.where == str(sample.image(3))
    assert not (tmp_path / "out").exists()


def test_a_part_of_train_becomes_val_on_request(sample: Sample, tmp_path: Path) -> None:
    template = sample.train["images"][0]
    sample.train["images"] += [template | {"id": i, "file_name": f"{i}.jpg"} for i in range(10, 17)]
    root = sample.save()
    (root / "val.json").unlink()
    for image in sample.train["images"]:
        (root / "images" / image["file_name"]).write_bytes(b"not opened")
    assert set(convert(root, "coco", tmp_path / "a").conversion.images) == {"train"}
    halves = [convert(root, "coco", tmp_path / f"b{i}", val_fraction=0.5) for i in range(2)]
    assert halves[0].conversion.images == {"train": 5, "val": 5}
    names = [sorted(os.listdir(half.folder / "images/val")) for half in halves]
    assert names[0] == names[1]
    with pytest.raises(UsageError, match="has a val split already"):
        convert(halves[0].folder, "voc", tmp_path / "c", val_fraction=0.5)


def test_nothing_is_written_into_the_source_or_over_files(sample: Sample, tmp_path: Path) -> None:
    root = sample.save()
    before = sorted(root.rglob("*"))
    for out in (root, root / "new", root / "images/../new"):
        with pytest.raises(UsageError):
            convert(root, "coco", out)
    with pytest.raises(UsageError, match="inside of the dataset"):
        convert(root / "train.json", "coco", root / "images/new", root / "images")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/data.yaml").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        convert(root, "yolo", tmp_path / "mine")
    assert sorted(root.rglob("*")) == before


def test_names_that_would_share_an_annotation_file_differ(sample: Sample, tmp_path: Path) -> None:
    for image, name in zip(sample.train["images"], ("a/1.jpg", "b/1.jpg", "b/1.png")):
        image["file_name"] = name
    root = sample.save()
    for split in (sample.train, sample.val):
        for image in split["images"]:
            path = root / "images" / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (image["width"], image["height"])).save(path)
    for to in ("yolo", "voc"):
        result = convert(root, to, tmp_path / to)
        assert any("renamed" in note for note in result.conversion.notes)
        assert_same_dataset(load(tmp_path / to), load(root))


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_images_without_an_ending_get_that_of_their_format(
    to: Any, sample: Sample, tmp_path: Path
) -> None:
    """Readers find images by their endings, and would leave these out without a word."""
    for image, name in zip(sample.train["images"], ("a", "b.jpg_large", "c.JPG")):
        (sample.root / "images" / image["file_name"]).rename(sample.root / "images" / name)
        image["file_name"] = name
    root = sample.save()
    result = convert(root, to, tmp_path / "out")
    (note,) = result.conversion.notes
    assert (note, result.conversion.notes[note]) == (
        "images renamed, because their names have no ending of an image",
        2,
    )
    assert_same_dataset(load(tmp_path / "out"), load(root))


def test_data_that_would_mislead_training_is_not_converted(sample: Sample, tmp_path: Path) -> None:
    sample.train["annotations"][0]["category_id"] = 99
    with pytest.raises(DataError, match="category_id is 99"):
        convert(sample.save(), "yolo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_is_lost(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = str(real_data / "tiny_coco")
    assert main(["convert", data, "--to", "voc", "--out", str(out), "--link"]) == 0
    text = capsys.readouterr().out
    assert "train: 50 images, 470 annotations" in text
    assert "masks that lost the pixels that another one has, too" in text
    assert main(["convert", data, "--to", "voc", "--out", str(out)]) == 2


@pytest.mark.parametrize(("image_format", "orientation"), [("JPEG", 6), ("PNG", 3), ("WEBP", 8)])
def test_boxes_of_an_image_that_exif_turns_fit_its_copy_in_yolo(
    image_format: str, orientation: int, sample: Sample, tmp_path: Path
) -> None:
    """Programs for YOLO turn images by EXIF, so the copy has the pixels that were annotated."""
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif[0x0112] = orientation
    turned = sample.image(0)
    with Image.open(sample.image(1)) as image:
        image.save(turned, format=image_format, exif=exif)
    record = load(sample.save()).splits["train"].records[0]
    result = convert(sample.root, "yolo", tmp_path / "yolo", link=True)
    (note,) = result.conversion.notes
    assert note == "images without their EXIF orientation, which their boxes ignore"
    written = load(tmp_path / "yolo").splits["train"].records[0]
    assert (written.width, written.height) == (64, 48)
    np.testing.assert_array_equal(written.boxes, record.boxes)
    copy = tmp_path / "yolo/images/train/0.jpg"
    with Image.open(copy) as image:
        assert image.getexif()[0x0110] == "a camera"
        assert ImageOps.exif_transpose(image).size == (64, 48)
    original = load_pixels(turned, (record.width, record.height))
    np.testing.assert_array_equal(np.asarray(load_image(copy)), original)
    assert copy.stat().st_size == turned.stat().st_size  # It was not encoded again.
    with Image.open(turned) as image:
        assert image.getexif()[0x0112] == orientation  # The source is not changed.


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_images_of_yolo_are_turned_by_exif_also_where_their_size_does_not_tell(
    to: Any, sample: Sample, tmp_path: Path
) -> None:
    """So Ultralytics, OpenCV and the programs for annotation see them."""
    convert(sample.save(), "yolo", tmp_path / "yolo")
    file = tmp_path / "yolo/images/train/0.jpg"
    with Image.open(file) as image:
        stored = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3
    stored.save(file, format="PNG", exif=exif)
    convert(tmp_path / "yolo", to, tmp_path / "copy")
    boxes = load(sample.root).splits["train"].records[0].boxes
    for folder in ("yolo", "copy"):
        split = load(tmp_path / folder).splits["train"]
        np.testing.assert_array_equal(split.records[0].boxes, boxes)
        dataset = DetectionDataset(split.records, val_transform(48))
        np.testing.assert_array_equal(
            dataset.decode(0).permute(1, 2, 0), np.asarray(stored)[::-1, ::-1]
        )
    codes = {finding.code for finding in check(tmp_path / "yolo").warnings}
    assert "exif-rotated" in codes
    assert "exif-ambiguous" not in codes


def test_an_image_whose_boxes_follow_exif_is_copied_as_it_is(
    sample: Sample, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sample.draw("0.jpg", 0, (48, 64))
    with Image.open(sample.image(0)) as image:
        image.save(sample.image(0), exif=exif)
    result = convert(sample.save(), "yolo", tmp_path / "yolo")
    assert not result.conversion.notes
    copy = tmp_path / "yolo/images/train/0.jpg"
    assert copy.read_bytes() == sample.image(0).read_bytes()


def test_an_orientation_that_cannot_be_removed_is_an_error_before_anything_is_written(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(sample.image(0)) as image:
        image.save(sample.image(0), exif=exif)
    monkeypatch.setattr("groupdetr.data.writers.yolo.without_orientation", lambda _: None)
    with pytest.raises(DataError, match="cannot be removed"):
        convert(sample.save(), "yolo", tmp_path / "yolo")
    assert not (tmp_path / "yolo").exists()


@pytest.mark.parametrize("name", ["bell\x07", "two\nlines"])
def test_names_of_classes_with_control_characters(
    name: str, sample: Sample, tmp_path: Path
) -> None:
    """XML has no such characters. The other formats write them as they are."""
    for content in (sample.train, sample.val):
        content["categories"][0]["name"] = name
    source = load(sample.save())
    for to in ("coco", "yolo"):
        convert(sample.root, to, tmp_path / to)
        assert load(tmp_path / to).categories[0].name == source.categories[0].name == name
    with pytest.raises(DataError, match="name of class 1 is"):
        convert(sample.root, "voc", tmp_path / "voc")
    assert not (tmp_path / "voc").exists()


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_boxes_that_readers_would_refuse_are_those_that_training_sees(
    to: Any, sample: Sample, tmp_path: Path
) -> None:
    """YOLO refuses boxes beyond the image. In Pascal VOC a corner below 1 moves all other boxes."""
    beyond, whole, thin, outside, empty = (
        [-0.5, 5, 20, 30],
        [-20, -9, 100, 60],
        [5, 10, 0.25, 20],
        [70, 5, 10, 10],
        [5, 10, 0, 20],
    )
    first = sample.train["annotations"][0]
    for box in (beyond, whole, thin, outside, empty):
        sample.train["annotations"].append(
            first | {"id": len(sample.train["annotations"]) + 1, "image_id": 1, "bbox": box}
        )
    source = load(sample.save())
    result = convert(sample.root, to, tmp_path / to)
    assert check(tmp_path / to).verdict != "refuse"
    for split, data in load(tmp_path / to).splits.items():
        for record, other in zip(data.records, source.splits[split].records, strict=True):
            expected, labels = other.trainable_objects()
            if to == "voc":  # It has whole pixels: the last one belongs to a box.
                is_thin = expected[:, 2] - expected[:, 0] < 1
                expected[is_thin, 0], expected[is_thin, 2] = 4.625, 5.625
            np.testing.assert_array_equal(record.corners, expected)
            np.testing.assert_array_equal(record.labels, labels)
    notes = result.conversion.notes
    assert notes["boxes clipped to their image"] == 2
    assert notes["boxes left out, because they have no area in their image"] == 2
    assert notes.get("boxes widened to one pixel", 0) == (to == "voc")


def test_polygons_are_clipped_to_their_image_in_yolo(sample: Sample, tmp_path: Path) -> None:
    """Their pixels stay the same. An edge that leaves the image is cut, not bent."""
    polygons = [
        [[50.0, 10.0, 90.0, 30.0, 50.0, 40.0]],
        [[-8.0, -8.0, 30.0, -8.0, -8.0, 30.0]],
        [[70.0, 5.0, 90.0, 5.0, 90.0, 40.0]],  # outside
        [[10.0, 5.0, 30.0, 5.0, 30.0, 40.0], [60.0, 60.0, 80.0, 60.0, 80.0, 80.0]],
    ]
    for annotation, polygon in zip(sample.train["annotations"], polygons):
        annotation["segmentation"] = polygon
    sample.val["annotations"][0]["segmentation"] = polygons[3][:1]
    source = load(sample.save(), masks=True).splits["train"]
    result = convert(sample.root, "yolo", tmp_path / "yolo")
    written = load(tmp_path / "yolo", masks=True).splits["train"]
    expected = _runs(source)
    assert not _area(expected.pop(2))  # of the polygon outside
    for run, other in zip(_runs(written), expected, strict=True):
        # A pixel on a slanted edge may differ.
        assert coco_mask.iou([run], [other], [0])[0, 0] > 0.9
    assert result.conversion.notes["masks clipped to their image"] == 3


def _runs(split: CocoSplit) -> list[Any]:
    """Return the run lengths of all masks of a split."""
    return [
        segmentation.to_rle(record.height, record.width)
        for record in split.records
        for segmentation in record.segmentations or ()
    ]


def test_labels_are_where_programs_for_yolo_look_for_them(sample: Sample, tmp_path: Path) -> None:
    """They replace the last folder ``images`` of a path, which may be one of the dataset."""
    for image in sample.train["images"]:
        sample.draw(f"camera/images/{image['file_name']}", seed=9)
        image["file_name"] = f"camera/images/{image['file_name']}"
    convert(sample.save(), "yolo", tmp_path / "yolo")
    assert_same_dataset(load(tmp_path / "yolo"), load(sample.root))


@pytest.mark.skipif(os.name == "nt", reason="names of files are text on Windows")
@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_names_that_are_not_in_utf8(to: Any, sample: Sample, tmp_path: Path) -> None:
    source = tmp_path / "source"
    convert(sample.save(), "yolo", source)
    for folder, suffix in (("images", b".jpg"), ("labels", b".txt")):
        path = os.fsencode(source / folder / "train")
        try:
            os.rename(path + b"/0" + suffix, path + b"/0\xe9" + suffix)
        except OSError:
            pytest.skip("this file system has only names in UTF-8")
    result = convert(source, to, tmp_path / to)
    assert result.conversion.notes["images renamed, because their names are not in UTF-8"] == 1
    assert_same_dataset(load(tmp_path / to), load(source))


def test_any_name_of_a_class_goes_to_pascal_voc_and_back(sample: Sample, tmp_path: Path) -> None:
    for content in (sample.train, sample.val):
        content["categories"] = [{"id": 1, "name": "sign: stop"}, {"id": 2, "name": "#2"}]
    convert(sample.save(), "voc", tmp_path / "voc")
    assert_same_dataset(load(tmp_path / "voc"), load(sample.root))
