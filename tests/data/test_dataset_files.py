"""A dataset is recognised by its files; the error for an unknown folder lists its content."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from groupdetr.data import dataset_files
from groupdetr.data.dataset_files import WHOLE, file_names, find_files, find_split_files
from groupdetr.data.paths import dataset_name
from groupdetr.errors import DataError, UsageError
from groupdetr.tasks.detection2d.label_errors import JSON_FILE
from groupdetr.tasks.detection2d.prediction_command import PREDICTIONS
from groupdetr.tasks.detection2d.prediction_files import COCO_RESULTS
from groupdetr.workflows.groups import FILES
from groupdetr.workflows.output_folder import VAL_FILES


def build(root: Path, paths: Iterable[str]) -> Path:
    """Create empty folders (ending in /) and files."""
    for path in paths:
        target = root / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.write_text("{}")
    return root


def test_a_dataset_has_the_name_of_its_folder_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "chess.v2", ["train/", "all.v1.json"])
    monkeypatch.chdir(tmp_path / "chess.v2/train")
    names = {".": "train", "..": "chess.v2", "../all.v1.json": "all.v1"}
    assert {path: dataset_name(Path(path)) for path in names} == names


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
    "files next to folders of images": ("train.json", "images/train/", "val.json", "images/val/"),
    "files next to all images": ("train.json", "./", "val.json", "./", "a.jpg"),
    "CVAT": (
        "annotations/instances_Train.json",
        "images/Train/",
        "annotations/instances_Validation.json",
        "images/Validation/",
    ),
    "names in other letters": ("Train.JSON", "Images/TRAIN/", "Val.json", "Images/val/"),
    "names of one split that differ": (
        "annotations/instances_train2017.json",
        "images/train/",
        "annotations/instances_val2017.json",
        "images/valid/",
    ),
    "FiftyOne": (
        "train/labels.json",
        "train/data/",
        "validation/labels.json",
        "validation/data/",
    ),
}


def test_every_layout_is_recognised(tmp_path: Path) -> None:
    for layout, paths in LAYOUTS.items():
        files = find_files(build(tmp_path / layout, paths))
        annotations, images, val_annotations, val_images, *_ = (
            tmp_path / layout / path for path in paths
        )
        expected = {"train": (annotations, images), "val": (val_annotations, val_images)}
        assert files == expected, layout


@pytest.mark.parametrize("alias", ["val", "valid", "validation"])
def test_val_has_three_aliases_and_test_is_optional(alias: str, tmp_path: Path) -> None:
    paths = [f"{name}/_annotations.coco.json" for name in ("train", alias, "test")]
    files = find_files(build(tmp_path, paths))
    assert files["val"].images == tmp_path / alias
    assert list(files) == ["train", "val", "test"]


def test_other_annotation_files_of_coco_are_ignored(tmp_path: Path) -> None:
    extra = [
        "annotations/captions_train2017.json",
        "annotations/person_keypoints_val2017.json",
        "test2017/",
    ]
    assert set(find_files(build(tmp_path, [*LAYOUTS["COCO"], *extra]))) == {"train", "val"}


def test_years_are_not_mixed_and_those_with_the_required_split_come_first(tmp_path: Path) -> None:
    older = [path.replace("2017", "2014") for path in LAYOUTS["COCO"]]
    files = find_files(build(tmp_path / "both", [*older, *LAYOUTS["COCO"]]))
    assert {split.images.name for split in files.values()} == {"train2017", "val2017"}
    build(tmp_path / "part", [*older, *LAYOUTS["COCO"][:2]])
    for name, images in (("val", "val2014"), ("train", "train2017")):
        assert find_split_files(tmp_path / "part", required=name)[name].images.name == images


def test_a_val_split_without_its_images_is_not_replaced_silently(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="val2017"):
        find_files(build(tmp_path, LAYOUTS["COCO"][:3]))


def test_two_files_for_one_split_are_an_error(tmp_path: Path) -> None:
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
    annotations: str, image: str, images: str, tmp_path: Path
) -> None:
    files = find_files(build(tmp_path, [annotations, *image.split()]))
    assert files == {"train": (tmp_path / annotations, tmp_path / images)}


def write_images(root: Path, folder: str, names: Iterable[str]) -> None:
    """Create files that have the names of images."""
    build(root, [f"{folder}/{name}" for name in names])


def write_annotations(file: Path, names: Iterable[str]) -> None:
    """Write an annotation file that lists images."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    file.write_text(json.dumps({"annotations": [], "images": images}))


@pytest.mark.parametrize(
    ("annotations", "folders", "expected"),
    [
        ("train.json", ["images/train", "images"], "images/train"),
        ("train.json", ["images", "images/train"], "images"),
        ("train.json", ["train", "images/train"], "train"),
        ("annotations/instances_train.json", ["images", "train"], "images"),
        ("train/_annotations.coco.json", ["train/images", "train"], "train/images"),
    ],
)
def test_the_folder_that_has_the_images_is_taken(
    annotations: str, folders: list[str], expected: str, tmp_path: Path
) -> None:
    """Another folder that could be it has other images."""
    write_annotations(tmp_path / annotations, ["a.jpg", "b.jpg"])
    write_images(tmp_path, folders[0], ["a.jpg", "b.jpg"])
    write_images(tmp_path, folders[1], ["x.jpg", "y.jpg", "z.jpg"])
    assert find_files(tmp_path)["train"].images == tmp_path / expected


def test_names_are_found_in_any_part_of_an_annotation_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_files, "_BLOCK", 16)
    names = [f'ümläut "{number}".jpg' for number in range(5)]
    write_annotations(tmp_path / "a.json", names)
    assert list(file_names(tmp_path / "a.json")) == names
    (tmp_path / "a.json").write_bytes(b'{"file_name": "\xff", "file_name": "x')
    assert list(file_names(tmp_path / "a.json")) == []


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("_annotations.coco.json", "."),
        ("some labels.json", "images"),
        ("set/labels.json", "set/labels"),
        ("annotations/instances_val.json", "images/val"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/val.json", "images"),
        ("val/labels.json", "val/data"),
    ],
)
def test_the_images_of_a_file_are_found_beside_it(
    annotations: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_annotations(tmp_path / annotations, ["a.jpg", "sub/b.jpg"])
    write_images(tmp_path, images, ["a.jpg", "sub/b.jpg"])
    files = find_split_files(tmp_path / annotations)
    assert files == {WHOLE: (tmp_path / annotations, tmp_path / images)}
    monkeypatch.chdir(tmp_path)
    assert find_files(annotations)["train"].images.resolve() == (tmp_path / images).resolve()


def test_a_file_whose_images_are_elsewhere_needs_their_folder(tmp_path: Path) -> None:
    write_annotations(tmp_path / "here/a.json", ["a.jpg"])
    write_images(tmp_path, "there", ["a.jpg"])
    write_images(tmp_path, "here", ["x.jpg"])
    file = tmp_path / "here/a.json"
    assert find_files(file, tmp_path / "there") == {"train": (file, tmp_path / "there")}
    with pytest.raises(UsageError, match="--images"):
        find_files(file)
    with pytest.raises(UsageError, match="is a folder"):
        find_files(tmp_path, tmp_path / "there")
    with pytest.raises(DataError, match="no such folder"):
        find_files(file, tmp_path / "nowhere")


def test_what_a_mac_writes_does_not_change_a_dataset(tmp_path: Path) -> None:
    """Archives of macOS have a file ._name beside every file, and the folder __MACOSX."""
    mac = ["._labels.json", "images/._a.jpg", "images/.DS_Store", "__MACOSX/images/._a.jpg"]
    build(tmp_path, ["labels.json", "images/sub/a.jpg", "__MACOSX/b.jpg", *mac, "Thumbs.db"])
    assert find_files(tmp_path) == {"train": (tmp_path / "labels.json", tmp_path / "images/sub")}


def test_the_splits_of_a_dataset_without_train_are_found(tmp_path: Path) -> None:
    build(tmp_path, LAYOUTS["COCO"][2:])
    assert list(find_split_files(tmp_path, required="val")) == ["val"]
    with pytest.raises(DataError, match="it has a val split, but no train split"):
        find_files(tmp_path)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["data.yaml", "images/train/a.jpg", "labels/train/a.txt"], "YOLO"),
        (["train/images/a.jpg", "train/labels/a.txt"], "YOLO"),
        (["JPEGImages/a.jpg", "Annotations/a.xml", "ImageSets/Main/train.txt"], "VOC"),
        (["a.json", "b.json", "images/a.jpg"], "'a.json', 'b.json', 'images/'"),
        (["./"], "nothing"),
    ],
)
def test_the_error_for_an_unknown_folder_lists_its_content(
    paths: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        find_files(build(tmp_path, paths))
    assert caught.value.exit_code == 3
    if "Found" in caught.value.what:
        assert "annotations/instances_train.json" in caught.value.what


def test_the_error_for_a_missing_path_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(DataError):
        find_files("a" * 5000)


def test_the_error_for_results_beside_annotations_lists_both(real_data: Path) -> None:
    with pytest.raises(DataError, match=r"expected\.json"):
        find_files(real_data / "coco_eval")


WRITTEN = {"check.json", "results.json", PREDICTIONS, COCO_RESULTS, JSON_FILE, *VAL_FILES, *FILES}


@pytest.mark.parametrize("folder", ["", "annotations/"])
def test_what_commands_wrote_beside_the_annotations_does_not_hide_them(
    folder: str, tmp_path: Path
) -> None:
    """The option --out of `groupdetr predict` may lead to the folder of a dataset."""
    paths = ["images/a.jpg", f"{folder}labels.json"]
    expected = find_files(build(tmp_path, paths))
    for written in sorted(name for name in WRITTEN if name.endswith(".json")):
        assert find_files(build(tmp_path, [*paths, f"{folder}{written}"])) == expected, written
        (tmp_path / folder / written).unlink()


def test_a_dataset_whose_annotation_file_has_the_name_of_an_output_is_read(tmp_path: Path) -> None:
    files = find_files(build(tmp_path, ["images/a.jpg", "metrics.json"]))
    assert [split.annotations.name for split in files.values()] == ["metrics.json"]
