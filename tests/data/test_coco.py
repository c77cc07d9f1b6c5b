"""COCO JSON with ids of any type and missing fields is read; errors name the record."""

import json

import numpy as np
import pytest

from groupdetr.data.coco import parse, read_split
from groupdetr.data.records import Category
from groupdetr.errors import DataError


def read(sample, name="train"):
    root = sample.save()
    return read_split(root / f"{name}.json", root / "images", name)


def test_a_split_is_read_as_recorded(sample):
    sample.train["annotations"][0]["area"] = 123.5
    split = read(sample)
    assert split.name == "train"
    assert split.categories == (Category(1, "cat"), Category(2, "dog"))
    first = split.records[0]
    assert (first.image_id, first.file_name, first.width, first.height) == (0, "0.jpg", 64, 48)
    assert first.path == sample.image(0)
    assert first.boxes.tolist() == [[10, 5, 20, 30], [11, 5, 20, 30]]
    assert first.boxes.dtype == np.float64
    assert first.areas.tolist() == [123.5, 600]
    assert first.labels.tolist() == [0, 1]
    assert first.labels.dtype == np.int64
    assert first.crowd.dtype == np.bool_
    assert first.annotation_ids == (1, 2)


def test_annotations_are_assigned_to_their_images_in_any_order(sample):
    sample.train["annotations"].reverse()
    sample.train["images"].reverse()
    ids = {record.image_id: record.annotation_ids for record in read(sample).records}
    assert ids == {2: (4,), 1: (3,), 0: (2, 1)}


@pytest.mark.parametrize("ids", [(0, 1), (-3, 2**63 - 1), ("2", "10"), (5, "x")])
def test_ids_of_any_type_become_contiguous_labels(ids, sample):
    for content in (sample.train, sample.val):
        for category in content["categories"]:
            category["id"] = ids[category["id"] - 1]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"] - 1]
            annotation["image_id"] = f"image {annotation['image_id']}"
        for image in content["images"]:
            image["id"] = f"image {image['id']}"
    split = read(sample)
    assert {category.id for category in split.categories} == set(ids)
    names = [split.categories[label].name for label in split.records[0].labels]
    assert names == ["cat", "dog"]
    assert split.records[0].image_id == "image 0"


def test_categories_are_ordered_by_id_numbers_before_texts(sample):
    sample.train["categories"] = [{"id": i, "name": f"n{i}"} for i in ("b", 10, 2, 1, "a")]
    assert [c.id for c in read(sample).categories] == [1, 2, 10, "a", "b"]


def test_optional_fields_may_be_absent(sample):
    for annotation in sample.train["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    for image in sample.train["images"]:
        del image["width"], image["height"]
    first = read(sample).records[0]
    assert (first.width, first.height) == (64, 48)
    assert first.areas.tolist() == [600, 600]
    assert not first.crowd.any()


def test_trainable_objects_are_clipped_and_have_area_and_are_no_crowds(sample):
    boxes = [
        [-5, -5, 20, 20],
        [50, 40, 100, 100],
        [10, 10, 0, 5],
        [70, 10, 5, 5],
        [1, 1, 5, 5],
        [2, 2, 5, 5],
    ]
    sample.train["annotations"] = [
        {"id": i, "image_id": 0, "category_id": 1 + i % 2, "bbox": box, "iscrowd": int(i == 4)}
        for i, box in enumerate(boxes, start=0)
    ]
    record = read(sample).records[0]
    assert len(record.boxes) == 6
    boxes, labels = record.trainable_objects()
    assert boxes.tolist() == [[0, 0, 15, 15], [50, 40, 64, 48], [2, 2, 7, 7]]
    assert labels.tolist() == [0, 1, 1]


def test_a_byte_order_mark_and_utf_16_are_read(sample):
    root = sample.save()
    sample.train["categories"][0]["name"] = "Katze für Ärzte"
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (root / "train.json").write_bytes(
            json.dumps(sample.train, ensure_ascii=False).encode(encoding)
        )
        assert (
            read_split(root / "train.json", root / "images", "train").categories[0].name
            == "Katze für Ärzte"
        )


@pytest.mark.parametrize(
    "name",
    [
        "./sub//a.jpg",
        "sub\\a.jpg",
        "images/sub/a.jpg",
        "sample/images/sub/a.jpg",
    ],
)
def test_a_file_name_may_be_written_in_several_ways(name, sample):
    path = sample.draw("sub/a.jpg", seed=9)
    sample.train["images"][0]["file_name"] = name
    assert read(sample).records[0].path == path


@pytest.mark.parametrize(
    ("name", "warnings"), [("in.jpg", 0), ("out.jpg", 1), ("linked/elsewhere.jpg", 1)]
)
def test_links_are_followed_and_those_out_of_the_image_folder_are_reported(
    sample, tmp_path, name, warnings
):
    images = sample.root / "images"
    (images / "in.jpg").symlink_to(sample.image(1))
    (images / "out.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (images / "linked").symlink_to(tmp_path)
    sample.train["images"][0]["file_name"] = name
    sample.save()
    split, findings = parse(sample.root / "train.json", images, "train")
    assert split.records[0].path == images / name
    assert [finding.code for finding in findings] == ["linked-outside"] * warnings


def test_an_error_names_file_record_and_remedy(sample):
    sample.box[2] = -4
    with pytest.raises(DataError) as caught:
        read(sample)
    assert caught.value.exit_code == 3
    assert "train.json" in caught.value.where
    assert "annotation 1" in caught.value.where
    assert "x, y, width, height" in caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "change", "names"),
    [
        ("categories", {"id": 2}, "'cat' and 'dog'"),
        ("images", {"id": 1}, "'0.jpg' and '1.jpg'"),
    ],
)
def test_an_id_that_stands_twice_is_refused_with_both_names(kind, change, names, sample):
    sample.train[kind][0] |= change
    with pytest.raises(DataError, match=f"{names} have the same id"):
        read(sample)
