"""Broken datasets of each format: the message names the file, the line and the remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from groupdetr.data.check import CheckReport, check
from groupdetr.data.findings import Finding
from groupdetr.data.layouts import load
from groupdetr.errors import DataError


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for split in ("train", "val"):
        save_image(root / f"images/{split}/{split}.jpg")
        write(root / f"labels/{split}/{split}.txt", "0 0.5 0.5 0.5 0.25\n1 0.2 0.2 0.1 0.1\n")
    write(root / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for split in ("train", "val"):
        save_image(root / f"JPEGImages/{split}.jpg")
        write(root / f"Annotations/{split}.xml", xml_text())
        write(root / f"ImageSets/Main/{split}.txt", f"{split}\n")
    return root


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    root = tmp_path / "metadata"
    for split in ("train", "validation"):
        save_image(root / f"{split}/a.jpg")
        row = {"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": ["cat"]}}
        write(root / f"{split}/metadata.jsonl", json.dumps(row))
    return root


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 40)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def xml_text(corners: tuple[object, ...] = (1, 1, 20, 10), name: str = "cat") -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, corners))
    return (
        "<annotation><size><width>80</width><height>40</height></size>"
        f"<object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
    )


def finding(report: CheckReport, code: str) -> Finding:
    (found,) = [item for item in report.errors + report.warnings if item.code == code]
    return found


LINES = {
    "0 0.5 0.5 0.5": "label-malformed",
    "0 0.5 0.5 0.5 0.25 0.9": "label-malformed",  # with a score
    "cat 0.5 0.5 0.5 0.25": "label-malformed",
    "0 nan 0.5 0.5 0.25": "label-malformed",
    "0 0.5 0.5 0.5 1e999": "label-malformed",
    "2 0.5 0.5 0.5 0.25": "label-class",
    "-1 0.5 0.5 0.5 0.25": "label-class",
    "0.5 0.5 0.5 0.5 0.25": "label-class",
    "0 40 20 40 10": "label-not-normalised",
    "0 0.5 0.5 -0.5 0.25": "label-not-normalised",
    "0 0.1 0.1 0.2 0.2 0.3": "label-malformed",  # two and a half points
}


def test_broken_labels_are_named_by_their_file_and_line(yolo: Path) -> None:
    file = yolo / "labels/train/train.txt"
    write(file, "\ufeff0 0.5 0.5 0.5 0.25\r\n\r\n" + "".join(f"{line}\r\n" for line in LINES))
    errors = check(yolo).errors
    expected = [(code, f"line {number}") for number, code in enumerate(LINES.values(), 3)]
    assert [(error.code, error.record) for error in errors] == expected
    assert {error.file for error in errors} == {str(file)}
    with pytest.raises(DataError, match="line 3"):
        load(yolo)


def test_a_box_that_is_clipped_is_named_by_its_line(yolo: Path) -> None:
    """Rules for COCO annotations name the file and the line of this format."""
    write(yolo / "labels/val/val.txt", "0 0.5 0.5 0.5 0.25\n1 0.95 0.5 0.2 0.1\n")
    found = finding(check(yolo), "box-clamped")
    assert (found.file, found.record) == (str(yolo / "labels/val/val.txt"), "line 2")


def test_an_image_behind_a_broken_link_is_missing(yolo: Path) -> None:
    """It is an image that the user has, as one of a list, and training without it needs a word."""
    link = yolo / "images/train/gone.jpg"
    link.symlink_to("elsewhere.jpg")
    found = finding(check(yolo), "missing-file")
    assert found.is_error
    assert found.file == str(link)


def test_polygons_are_read_as_masks(yolo: Path) -> None:
    write(yolo / "labels/train/train.txt", "1 0.1 0.1 0.5 0.1 0.5 0.6\n")
    write(yolo / "labels/val/val.txt", "")
    (record,) = load(yolo, masks=True).splits["train"].records
    assert record.boxes.tolist() == [[8, 4, 32, 20]]
    assert record.areas.tolist() == [32 * 20 / 2]
    assert record.segmentations is not None


def test_images_without_labels_have_no_objects(yolo: Path) -> None:
    save_image(yolo / "images/train/empty.jpg")
    write(yolo / "labels/train/gone.txt", "0 0.5 0.5 0.5 0.25")
    report = check(yolo)
    assert report.splits["train"].empty_images == 1
    assert finding(report, "labels-without-image").file == str(yolo / "labels/train/gone.txt")
    for label in yolo.glob("labels/*/*.txt"):
        label.unlink()
    report = check(yolo)
    assert "labels-missing" in {error.code for error in report.errors}


DESCRIPTIONS = {
    "path: /home/somebody/data\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}": 1,
    "path: .\ntrain: [images/train]\nval: ../images/val\nnames: {1: dog, 0: cat}": 1,
    "train: list.txt\nval: images/val/*.jpg\nnc: 2\nnames: ['cat', 'dog']": 1,
    "train: images/train\nval: images/val\ntest:\nnames: classes.names\n": 1,
    "train: images/train\nval: images/val\nnames: [cat]\nnc: 2": 0,
    "train: images/train\nval: images/val\nnames: []": 0,
    "train: 3\nval: images/val\nnames: [cat, dog]": 0,
    "val: images/val\nnames: [cat, dog]": 0,
}


def test_descriptions_of_datasets_are_read_or_refused(yolo: Path) -> None:
    write(yolo / "list.txt", "./images/train/train.jpg\n\n")
    write(yolo / "classes.names", "cat\ndog\n")
    for text, is_read in DESCRIPTIONS.items():
        write(yolo / "data.yaml", text)
        for data in (yolo, yolo / "data.yaml"):
            report = check(data)
            assert (report.verdict != "refuse") == is_read, (text, report.render())
            if is_read:
                splits = load(data)
                assert [category.name for category in splits.categories] == ["cat", "dog"]
                boxes = splits.splits["train"].records[0].boxes
                assert boxes.tolist()[0] == [20, 15, 40, 10]


def test_a_yaml_file_runs_no_code(yolo: Path) -> None:
    write(yolo / "data.yaml", f"train: !!python/object/apply:os.mkdir ['{yolo}/x']\nnames: [cat]")
    assert check(yolo).verdict == "refuse"
    assert not (yolo / "x").exists()


BROKEN_XML: dict[str, str] = {
    "<annotation>": "xml-malformed",
    "": "xml-malformed",
    "<annotations></annotations>": "xml-malformed",
    '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>': "xml-malformed",
    xml_text(name=""): "xml-object",
    xml_text(corners=(1, 1, "x", 10)): "xml-object",
    xml_text(corners=(1, 1, "nan", 10)): "xml-object",
    xml_text(corners=(20, 1, 10, 10)): "xml-object",
    "<annotation><object><name>cat</name></object></annotation>": "xml-object",
}


def test_broken_xml_files_are_named(voc: Path) -> None:
    for number, text in enumerate(BROKEN_XML):
        save_image(voc / f"JPEGImages/{number}.jpg")
        write(voc / f"Annotations/{number}.xml", text)
    names = "\n".join(map(str, range(len(BROKEN_XML))))
    write(voc / "ImageSets/Main/train.txt", f"train\n{names}\n")
    errors = {error.file: error.code for error in check(voc).errors}
    assert errors == {
        str(voc / f"Annotations/{number}.xml"): code
        for number, code in enumerate(BROKEN_XML.values())
    }


def test_an_xml_file_in_another_encoding_is_read(voc: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?>' + xml_text(name="Ännchen")
    for split in ("train", "val"):
        (voc / f"Annotations/{split}.xml").write_bytes(text.encode("utf-16"))
    assert [category.name for category in load(voc).categories] == ["Ännchen"]


def test_corners_that_begin_at_0_are_recognised(voc: Path) -> None:
    assert load(voc).splits["train"].records[0].boxes.tolist() == [[0, 0, 20, 10]]
    write(voc / "Annotations/val.xml", xml_text(corners=(0, 3, 80, 40)))
    assert load(voc).splits["train"].records[0].boxes.tolist() == [[1, 1, 19, 9]]
    assert not finding(check(voc), "corners-from-zero").is_error


def test_difficult_objects_are_crowds(voc: Path) -> None:
    flags = {"1": True, "true": True, "0": False, "False": False, "Unspecified": False}
    one = xml_text()
    start, end = one.index("<object>"), one.index("</annotation>")
    objects = [
        one[start:end].replace("</name>", f"</name><difficult>{flag}</difficult>") for flag in flags
    ]
    write(voc / "Annotations/train.xml", one[:start] + "".join(objects) + one[end:])
    (record,) = load(voc).splits["train"].records
    assert record.crowd.tolist() == list(flags.values())
    assert record.trainable.tolist() == [not crowd for crowd in flags.values()]


@pytest.mark.parametrize("ending", ["bmp", "png"])
def test_of_images_with_other_endings_the_recorded_one_is_read(ending: str, voc: Path) -> None:
    for other in ("bmp", "png"):
        save_image(voc / f"JPEGImages/train.{other}")
    recorded = f"<annotation><filename>train.{ending}</filename>"
    write(voc / "Annotations/train.xml", xml_text().replace("<annotation>", recorded))
    (record,) = load(voc).splits["train"].records
    assert record.path.name == f"train.{ending}"


def test_files_that_a_list_names_must_exist(voc: Path) -> None:
    write(voc / "ImageSets/Main/train.txt", "train  1\nnowhere -1\n")
    assert finding(check(voc), "xml-missing").file == str(voc / "Annotations/nowhere.xml")
    (voc / "JPEGImages/train.jpg").unlink()
    assert finding(check(voc), "xml-image").file == str(voc / "Annotations/train.xml")


@pytest.mark.parametrize("line", ["my cat (1)", "my cat (1)  1", "JPEGImages/my cat (1).jpg"])
def test_names_in_lists_may_have_spaces_flags_and_endings(line: str, voc: Path) -> None:
    (voc / "JPEGImages/train.jpg").rename(voc / "JPEGImages/my cat (1).jpg")
    (voc / "Annotations/train.xml").rename(voc / "Annotations/my cat (1).xml")
    write(voc / "ImageSets/Main/train.txt", f"{line}\n")
    (record,) = load(voc).splits["train"].records
    assert record.path.name == "my cat (1).jpg"


def test_names_of_classes_beside_xml_files_are_those_of_pascal_voc(voc: Path) -> None:
    """A dataset of YOLO may have the same file, and text files beside the images."""
    for path in sorted(voc.glob("*/*.*")):
        path.rename(voc / path.name)
    write(voc / "classes.txt", "dog\ncat\n")
    data = load(voc)
    assert [category.name for category in data.categories] == ["dog", "cat"]
    assert sum(len(record.boxes) for record in data.splits["train"].records)


def test_an_empty_list_of_classes_and_no_objects_are_findings(voc: Path) -> None:
    write(voc / "classes.txt", "")
    for split in ("train", "val"):
        write(voc / f"Annotations/{split}.xml", "<annotation></annotation>")
    assert {item.code for item in check(voc).errors} == {"no-categories", "no-training-boxes"}


def test_the_folder_of_the_images_is_listed_as_often_for_many_images(
    voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images may lie beside the folder Annotations, and each list has all of their names."""
    listed: list[str] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    counts = []
    for number in (2, 20):
        for index in range(number):
            save_image(voc / f"{index}.jpg")
            write(voc / f"Annotations/{index}.xml", xml_text())
        listed.clear()
        load(voc)
        counts.append(len(listed))
    assert counts[0] == counts[1]


def test_links_to_folders_of_pascal_voc_are_followed_once(voc: Path, tmp_path: Path) -> None:
    """Two links that lead back would give more paths than any search can visit."""
    expected = [record.path for record in load(voc).splits["train"].records]
    (voc / "again").symlink_to(voc, target_is_directory=True)
    (voc / "Annotations/again").symlink_to(voc, target_is_directory=True)
    for split in ("train", "val"):
        (voc / f"ImageSets/Main/{split}.txt").unlink()
    data = load(voc)
    records = [record.path for split in data.splits.values() for record in split.records]
    assert sorted(records) == sorted([*expected, voc / "JPEGImages/val.jpg"])
    outside = tmp_path / "elsewhere"
    (voc / "JPEGImages").rename(outside)
    (voc / "JPEGImages").symlink_to(outside, target_is_directory=True)
    assert sum(map(len, load(voc).splits.values())) == 2


def test_of_several_years_one_must_be_chosen(voc: Path, tmp_path: Path) -> None:
    devkit = tmp_path / "VOCdevkit"
    devkit.mkdir()
    voc.rename(devkit / "VOC2007")
    assert not check(tmp_path).errors
    write(devkit / "VOC2012/Annotations/a.xml", xml_text())
    write(devkit / "VOC2012/ImageSets/Main/train.txt", "a")
    assert "VOC2007" in finding(check(devkit), "several-years").what


ROWS = {
    "{": "metadata-row",
    "3": "metadata-row",
    "{}": "bad-image",
    '{"file_name": "a.jpg"}': "metadata-row",
    '{"file_name": "../a.jpg", "objects": {}}': "path-outside",
    '{"file_name": "a.jpg", "objects": {"bbox": [[1, 2]], "category": ["cat"]}}': "box-malformed",
    '{"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": []}}': (
        "unknown-category"
    ),
}


def test_broken_rows_are_named(metadata: Path) -> None:
    file = metadata / "train/metadata.jsonl"
    write(file, "\n".join([file.read_text(encoding="utf-8"), *ROWS]))
    errors = check(metadata).errors
    assert {error.file for error in errors} == {str(file)}
    found = {(error.code, error.record.partition(",")[0]) for error in errors}
    for number, code in enumerate(ROWS.values(), 2):
        assert (code, f"line {number}") in found


@pytest.mark.parametrize("feature", ["sequence", "list", "struct"])
def test_names_of_classes_are_those_of_the_categories_of_objects(
    feature: str, metadata: Path
) -> None:
    label = {"class_label": {"names": {"0": "sunny", "1": "rainy"}}}
    objects = {"class_label": {"names": {"0": "cat", "1": "dog"}}}
    features = [
        {"name": "weather", "dtype": label},
        {
            "name": "objects",
            feature: [{"name": "pose", "dtype": label}, {"name": "category", "dtype": objects}],
        },
    ]
    card = yaml.safe_dump({"dataset_info": [{"config_name": "a", "features": features}]})
    write(metadata / "README.md", f"---\n{card}---\n")
    row = {"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": [1]}}
    for split in ("train", "validation"):
        write(metadata / split / "metadata.jsonl", json.dumps(row))
    assert [category.name for category in load(metadata).categories] == ["cat", "dog"]


def test_the_splits_of_an_image_folder_may_be_in_the_folder_data(metadata: Path) -> None:
    (metadata / "data").mkdir()
    for split in ("train", "validation"):
        (metadata / split).rename(metadata / "data" / split)
    assert load(metadata).splits.keys() == {"train", "val"}
    (metadata / "data/dev").mkdir()
    with pytest.raises(DataError, match="could be"):
        load(metadata)


def test_classes_without_names_are_the_numbers_that_objects_have(metadata: Path) -> None:
    """They may be ids of another file, of any size."""
    row = {"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]] * 2, "category": [7, 10**12]}}
    for split in ("train", "validation"):
        write(metadata / split / "metadata.jsonl", json.dumps(row))
    data = load(metadata)
    assert [category.id for category in data.categories] == [7, 10**12]
    assert data.splits["train"].records[0].labels.tolist() == [0, 1]


OTHERS: dict[str, Callable[[Path], object]] = {
    "TFRecord": lambda root: write(root / "train.tfrecord", "x"),
    "CreateML": lambda root: write(root / "_annotations.createml.json", "[]"),
    "LabelMe": lambda root: write(root / "a.json", '{"shapes": [], "imagePath": "a.jpg"}'),
    "CVAT": lambda root: write(
        root / "annotations.xml", "<annotations><image id='0'/></annotations>"
    ),
    "KITTI": lambda root: write(root / "label_2/0.txt", "Car 0 0 0 1 2 3 4"),
    "CSV": lambda root: write(root / "train_labels.csv", "filename,width"),
    "image classification": lambda root: [save_image(root / name / "a.jpg") for name in "ab"],
    "2 images without annotations": lambda root: [save_image(root / f"{n}.jpg") for n in "ab"],
}


def test_another_format_is_named(tmp_path: Path) -> None:
    for name, write_files in OTHERS.items():
        write_files(tmp_path / name)
        assert name in finding(check(tmp_path / name), "unknown-layout").what
