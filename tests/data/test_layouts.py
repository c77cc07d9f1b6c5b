"""A dataset is recognised by its files; the error for an unknown folder lists its content."""

import json
import shutil

import pytest

from groupdetr.data.layouts import HOLDOUT, find_files, load
from groupdetr.errors import DataError, UsageError


def build(root, paths):
    """Create empty folders (ending in /) and files."""
    for path in paths:
        target = root / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.write_text("{}")
    return root


LAYOUTS = {
    "COCO": (
        "annotations/instances_train2017.json",
        "train2017/",
        "annotations/instances_val2017.json",
        "val2017/",
    ),
    "COCO, images in one folder for each split": (
        "annotations/instances_train.json",
        "images/train/",
        "annotations/instances_val.json",
        "images/val/",
    ),
    "COCO, images in one folder": (
        "annotations/instances_train.json",
        "images/",
        "annotations/instances_val.json",
        "images/",
    ),
    "Roboflow": (
        "train/_annotations.coco.json",
        "train/",
        "valid/_annotations.coco.json",
        "valid/",
    ),
    "one folder": ("train.json", "images/", "val.json", "images/"),
    "files next to folders": ("train.json", "train/", "validation.json", "validation/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised(layout, tmp_path):
    files = find_files(build(tmp_path, LAYOUTS[layout]))
    annotations, images, val_annotations, val_images = (tmp_path / path for path in LAYOUTS[layout])
    assert files == {"train": (annotations, images), "val": (val_annotations, val_images)}


@pytest.mark.parametrize("alias", ["val", "valid", "validation"])
def test_val_has_three_aliases_and_test_is_optional(alias, tmp_path):
    paths = [f"{name}/_annotations.coco.json" for name in ("train", alias, "test")]
    files = find_files(build(tmp_path, paths))
    assert files["val"].images == tmp_path / alias
    assert list(files) == ["train", "val", "test"]


def test_other_annotation_files_of_coco_are_ignored(tmp_path):
    extra = [
        "annotations/captions_train2017.json",
        "annotations/person_keypoints_val2017.json",
        "test2017/",
    ]
    assert set(find_files(build(tmp_path, [*LAYOUTS["COCO"], *extra]))) == {"train", "val"}


def test_years_are_not_mixed(tmp_path):
    older = [path.replace("2017", "2014") for path in LAYOUTS["COCO"]]
    files = find_files(build(tmp_path, [*older, *LAYOUTS["COCO"]]))
    assert {split.images.name for split in files.values()} == {"train2017", "val2017"}


def test_a_val_split_without_its_images_is_not_replaced_silently(tmp_path):
    with pytest.raises(DataError, match="val2017"):
        find_files(build(tmp_path, LAYOUTS["COCO"][:3]))


def test_two_files_for_one_split_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"valid\.json"):
        find_files(build(tmp_path, ["images/", "train.json", "val.json", "valid.json"]))


@pytest.mark.parametrize(
    ("annotations", "image", "images"),
    [
        ("result.json", "images/a.jpg", "images"),
        ("labels.json", "data/a.PNG", "data"),
        ("a.json", "b.jpg", "."),
        ("annotations/instances_default.json", "images/default/a.jpg", "images/default"),
        ("x.json", "images/one/a.jpg images/two/b.jpg", "images"),
        ("x.json", "images/a.jpg figures/b.png", "images"),
    ],
)
def test_one_annotation_file_and_one_folder_of_images_are_a_dataset(
    annotations, image, images, tmp_path
):
    files = find_files(build(tmp_path, [annotations, *image.split()]))
    assert files == {"train": (tmp_path / annotations, tmp_path / images)}


def test_an_annotation_file_needs_its_images(sample):
    root = sample.save()
    assert find_files(root / "train.json", root / "images") == {
        "train": (root / "train.json", root / "images")
    }
    with pytest.raises(UsageError, match="--images"):
        find_files(root / "train.json")
    with pytest.raises(UsageError):
        find_files(root, root / "images")
    with pytest.raises(DataError):
        find_files(root / "train.json", root / "nowhere")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["data.yaml", "images/train/a.jpg", "labels/train/a.txt"], "YOLO"),
        (["train/images/a.jpg", "train/labels/a.txt"], "YOLO"),
        (["JPEGImages/a.jpg", "Annotations/a.xml", "ImageSets/Main/train.txt"], "VOC"),
        (["cats/a.jpg", "dogs/b.jpg"], "Found: 'cats/', 'dogs/'"),
        (["a.json", "b.json", "images/a.jpg"], "'a.json', 'b.json', 'images/'"),
        (["./"], "nothing"),
    ],
)
def test_the_error_for_an_unknown_folder_lists_its_content(paths, words, tmp_path):
    with pytest.raises(DataError, match=words) as caught:
        find_files(build(tmp_path, paths))
    assert caught.value.exit_code == 3
    if "Found" in caught.value.what:
        assert "annotations/instances_train.json" in caught.value.what


def test_the_error_for_a_missing_path_names_it(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(DataError):
        find_files("a" * 5000)


def test_all_splits_have_the_categories_of_train(sample):
    sample.val["categories"] = sample.val["categories"][1:]
    sample.val["annotations"][0]["category_id"] = 2
    data = load(sample.save())
    assert set(data.splits) == {"train", "val"}
    assert data.splits["val"].categories == data.categories == data.splits["train"].categories
    assert data.splits["val"].records[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    "change", [{"id": 2, "name": "cow"}, {"id": 3, "name": "dog"}, {"id": 3, "name": "cow"}]
)
def test_categories_that_contradict_train_are_refused(change, sample):
    sample.val["categories"][1] = change
    with pytest.raises(DataError, match=r"val\.json"):
        load(sample.save())


def test_where_there_is_no_val_split_one_is_held_out_of_train(sample):
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


def test_layouts_with_the_same_content_are_the_same_dataset(sample, tmp_path):
    root = sample.save()
    other = tmp_path / "roboflow"
    for name, alias, numbers in (("train", "train", range(3)), ("val", "valid", [3])):
        (other / alias).mkdir(parents=True)
        shutil.copy(root / f"{name}.json", other / alias / "_annotations.coco.json")
        for number in numbers:
            shutil.copy(sample.image(number), other / alias)
    one_folder, roboflow = load(root), load(other)
    assert one_folder.categories == roboflow.categories
    for name in ("train", "val"):
        pairs = zip(one_folder.splits[name].records, roboflow.splits[name].records, strict=True)
        for a, b in pairs:
            assert a.boxes.tolist() == b.boxes.tolist()
            assert b.path.is_file()


def test_real_datasets_are_recognised(real_data):
    for name in ("bccd", "tiny_coco", "raccoon"):
        assert set(load(real_data / name).splits) == {"train", "val"}
    with pytest.raises(DataError, match=r"expected\.json"):
        find_files(real_data / "coco_eval")
    content = json.loads((real_data / "coco_eval" / "gt.json").read_text())
    assert len(load(real_data / "coco_eval" / "gt.json", real_data).categories) == len(
        content["categories"]
    )
