"""Splits of a dataset: the categories of train, a held-out val, and one split for an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groupdetr.data import formats
from groupdetr.data.check import check
from groupdetr.data.formats import DataFormat, SplitAnnotations
from groupdetr.data.layouts import HOLDOUT, load, load_split
from groupdetr.errors import DataError, UsageError
from tests.data.conftest import Sample


def test_all_splits_have_the_categories_of_train(sample: Sample) -> None:
    sample.val["categories"] = sample.val["categories"][1:]
    sample.val["annotations"][0]["category_id"] = 2
    data = load(sample.save())
    assert set(data.splits) == {"train", "val"}
    assert data.splits["val"].categories == data.categories == data.splits["train"].categories
    assert data.splits["val"].records[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    "change", [{"id": 2, "name": "cow"}, {"id": 3, "name": "dog"}, {"id": 3, "name": "cow"}]
)
def test_categories_that_contradict_train_are_refused(
    change: dict[str, Any], sample: Sample
) -> None:
    sample.val["categories"][1] = change
    with pytest.raises(DataError, match=r"val\.json"):
        load(sample.save())


def test_where_there_is_no_val_split_one_is_held_out_of_train(sample: Sample) -> None:
    template = sample.train["images"][0]
    sample.train["images"] += [template | {"id": i, "file_name": f"{i}.jpg"} for i in range(10, 17)]
    (sample.save() / "val.json").unlink()
    splits = load(sample.root).splits
    assert (len(splits["train"]), len(splits["val"])) == (8, round(10 * HOLDOUT))
    names = {record.file_name for split in splits.values() for record in split.records}
    assert len(names) == 10
    held = [record.file_name for record in splits["val"].records]
    assert held == [record.file_name for record in load(sample.root).splits["val"].records]
    assert (
        load(sample.root / "train.json", sample.root / "images").splits["val"].records[0].file_name
        == held[0]
    )


# classes that are only the parent of others


def with_parent(sample: Sample, identifier: int = 0) -> None:
    """Add the category that Roboflow writes with the id 0."""
    for content in (sample.train, sample.val):
        for category in content["categories"]:
            category["supercategory"] = "animals"
        parent = {"id": identifier, "name": "animals", "supercategory": "none"}
        content["categories"].insert(0, parent)


@pytest.mark.parametrize("identifier", [0, 9])
def test_a_parent_without_boxes_is_no_class_and_check_says_so(
    identifier: int, sample: Sample
) -> None:
    with_parent(sample, identifier)
    data = load(sample.save())
    assert [category.name for category in data.categories] == ["cat", "dog"]
    assert [record.labels.tolist() for record in data.splits["train"].records] == [[0, 1], [0], [1]]
    report = check(sample.root)
    (warning,) = report.warnings
    assert (warning.code, warning.record) == ("parent-category", f"category {identifier}")
    assert "'animals'" in warning.what
    assert len(report.splits["train"].classes) == 2


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_parent_that_a_box_of_any_split_has_is_a_class(split: str, sample: Sample) -> None:
    with_parent(sample)
    getattr(sample, split)["annotations"][0]["category_id"] = 0
    assert [category.name for category in load(sample.save()).categories] == [
        "animals",
        "cat",
        "dog",
    ]


def test_a_class_without_boxes_that_is_its_own_parent_is_kept(sample: Sample) -> None:
    """COCO's person belongs to the supercategory person."""
    person = {"id": 9, "name": "person", "supercategory": "person"}
    for content in (sample.train, sample.val):
        content["categories"].append(person)
    assert [category.name for category in load(sample.save()).categories] == [
        "cat",
        "dog",
        "person",
    ]


# one split for an evaluation


def test_a_file_and_a_folder_with_one_file_are_evaluated_as_a_whole(sample: Sample) -> None:
    root = sample.save()
    whole = load_split(root / "train.json", root / "images")
    assert (whole.name, len(whole)) == ("all", 3)
    with pytest.raises(UsageError, match="leave out --split"):
        load_split(root / "train.json", root / "images", "val")
    (root / "train.json").rename(root / "labels.json")
    (root / "val.json").unlink()
    whole = load_split(root)
    assert (whole.name, len(whole)) == ("all", 3)
    data = load(root)
    assert (len(data.splits["train"]), len(data.splits["val"]), data.held_out) == (2, 1, True)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_is_evaluated_as_a_whole_also_if_it_is_the_only_one(
    split: str, sample: Sample
) -> None:
    (sample.save() / "train.json").rename(sample.root / f"{split}.json")
    if split != "val":
        (sample.root / "val.json").unlink()
    assert len(load_split(sample.root, split=split)) == 3
    if split == "val":
        assert len(load_split(sample.root)) == 3
    else:
        with pytest.raises(UsageError, match=f"no split 'val'.*\n.*\n.*--split {split}"):
            load_split(sample.root)


def test_a_split_of_another_format_is_evaluated_as_a_whole(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: Path) -> dict[str, SplitAnnotations]:
        return {"test": SplitAnnotations(sample.train, sample.root / "images", data)}

    monkeypatch.setattr(formats, "_FORMATS", [DataFormat("own", lambda _: True, read)])
    assert len(load_split(sample.save(), split="test")) == 3
    with pytest.raises(UsageError, match="--split test"):
        load_split(sample.root)
    assert len(load_split(sample.root / "train.json")) == 3, "a file with one split"
