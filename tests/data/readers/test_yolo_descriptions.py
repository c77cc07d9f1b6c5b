"""What other libraries read of YOLO datasets: entries of data.yaml, lists, links and subfolders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from groupdetr.data.check import check
from groupdetr.data.layouts import read_with_findings
from groupdetr.errors import DataError

NAMES = "names: [cat, dog]\n"


def write_split(images: Path, *names: str) -> None:
    """Write images with one object each, and their labels in the folder beside."""
    labels = images.parent / "labels"
    if images.parent.name == "images":
        labels = images.parents[1] / "labels" / images.name
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (80, 40)).save(images / name)
        labels.joinpath(name).with_suffix(".txt").write_text("1 0.5 0.5 0.5 0.25\n")


def roboflow(root: Path) -> None:
    write_split(root / "train/images", "a.jpg", "b.jpg")
    write_split(root / "valid/images", "c.jpg")


def ultralytics(root: Path) -> None:
    write_split(root / "images/train", "a.jpg", "b.jpg")
    write_split(root / "images/val", "c.jpg")


DESCRIPTIONS: dict[str, tuple[Callable[[Path], None], str, set[str]]] = {
    "the folders of another arrangement": (
        roboflow,
        "train: images/train\nval: images/val\n",
        {"split-elsewhere"},
    ),
    "paths of another machine": (
        ultralytics,
        "train: /content/data/images/train\nval: /content/data/images/val\n",
        {"split-elsewhere"},
    ),
    "paths of another system": (
        roboflow,
        "train: C:\\Users\\me\\set\\train\\images\nval: C:\\Users\\me\\set\\valid\\images\n",
        {"split-elsewhere"},
    ),
    "a test split that does not exist": (
        roboflow,
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",
        {"test-split-missing"},
    ),
    "no splits": (roboflow, "", set()),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_split_is_found_although_its_entry_is_wrong(name: str, tmp_path: Path) -> None:
    layout, text, expected = DESCRIPTIONS[name]
    layout(tmp_path)
    (tmp_path / "data.yaml").write_text(text + NAMES)
    data, findings = read_with_findings(tmp_path)
    assert {finding.code for finding in findings} == expected
    names = {split: [r.path.name for r in data.splits[split].records] for split in data.splits}
    assert names == {"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"]}
    assert all(len(record.boxes) == 1 for s in data.splits.values() for record in s.records)
    assert all(not finding.is_error for finding in findings)


@pytest.mark.parametrize("entry", ["C:\\set\\images", "elsewhere"])
def test_an_entry_is_not_replaced_by_the_images_of_all_splits(entry: str, tmp_path: Path) -> None:
    """Train would have the images of val."""
    ultralytics(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: {entry}\nval: images/val\n{NAMES}")
    data, findings = read_with_findings(tmp_path)
    assert [record.path.name for record in data.splits["train"].records] == ["a.jpg", "b.jpg"]
    assert [finding.code for finding in findings] == ["split-elsewhere"]


def test_a_train_split_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "images/val", "c.jpg")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\n{NAMES}")
    with pytest.raises(DataError, match="'train' is 'images/train', which is neither in"):
        read_with_findings(tmp_path)


def test_a_list_names_an_image_once_and_only_images(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "train.txt").write_text(
        "# all of them\n./images/train/a.jpg\n./images/train/b.jpg\n\n./images/train/a.jpg\n"
    )
    (tmp_path / "data.yaml").write_text(f"train: train.txt\nval: images/val\n{NAMES}")
    data, findings = read_with_findings(tmp_path)
    assert [record.path.name for record in data.splits["train"].records] == ["a.jpg", "b.jpg"]
    assert [(finding.code, finding.record) for finding in findings] == [
        ("list-line", "line 1"),
        ("image-listed-twice", ""),
    ]


@pytest.mark.parametrize("count", ["2", "'2'", "2.0"])
def test_classes_without_names_have_those_of_ultralytics(count: str, tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\nnc: {count}\n")
    data, findings = read_with_findings(tmp_path)
    assert [category.name for category in data.categories] == ["class_0", "class_1"]
    assert [finding.code for finding in findings] == ["class-names-invented"]


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    """One of them would be left out without a word."""
    ultralytics(tmp_path)
    write_split(tmp_path / "images/dev", "d.jpg")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="its val split could be 'images/dev' or 'images/val'"):
        read_with_findings(tmp_path)
    # data.yaml tells which one is meant.
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/dev\n{NAMES}")
    data, _ = read_with_findings(tmp_path)
    assert [record.path.name for record in data.splits["val"].records] == ["d.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"train: images/train\nval: [images/val\nnames: [cat, dog]\n", "it is not YAML"),
        ("train: images/train\nval: images/val\nnames: [B\xe4r, dog]\n".encode("latin-1"), "UTF-8"),
        (b"train: images/train\nval: images/val\nnames: [cat, '']\n", "class 1 is empty"),
    ],
)
def test_what_is_wrong_with_the_description_is_named(
    text: bytes, message: str, tmp_path: Path
) -> None:
    """It is not read as if there were no data.yaml."""
    ultralytics(tmp_path)
    file = tmp_path / "data.yaml"
    file.write_bytes(text)
    for data in (tmp_path, file):
        with pytest.raises(DataError, match=message) as error:
            read_with_findings(data)
        assert str(file) in str(error.value)


def test_two_classes_of_one_name_are_named_once_with_their_file(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    for label in tmp_path.glob("labels/*/*.txt"):
        label.write_text("0 0.5 0.5 0.5 0.25\n1 0.5 0.5 0.5 0.25\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, cat]\n")
    _, findings = read_with_findings(tmp_path)
    places = [(finding.code, finding.where) for finding in findings]
    assert places == [("ambiguous-category-name", f"{tmp_path / 'data.yaml'}: class 0, class 1")]


def test_the_description_beside_the_images_may_be_in_a_folder_of_its_own(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "config").mkdir()
    text = f"path: ..\ntrain: images/train\nval: images/val\n{NAMES}"
    (tmp_path / "config/data.yaml").write_text(text)
    data, findings = read_with_findings(tmp_path)
    assert [category.name for category in data.categories] == ["cat", "dog"]
    assert not findings


def test_names_in_a_list_may_be_relative_to_the_dataset(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("images/train/a.jpg\nimages/train/b.jpg\n")
    (tmp_path / "data.yaml").write_text(f"train: splits/train.txt\nval: images/val\n{NAMES}")
    data, findings = read_with_findings(tmp_path)
    assert [len(record.boxes) for record in data.splits["train"].records] == [1, 1]
    assert not findings


@pytest.mark.parametrize("data", [".", "data.yaml", "images"])
def test_labels_are_found_from_the_folder_of_the_dataset(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the path of an image begins with the folder ``images``, or has none above it."""
    root = tmp_path / "images" if data == "images" else tmp_path
    ultralytics(root)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\n{NAMES}")
    monkeypatch.chdir(root)
    splits, findings = read_with_findings("." if data == "images" else data)
    assert [len(record.boxes) for record in splits.splits["train"].records] == [1, 1]
    assert not findings


def test_images_may_be_named_by_relative_and_by_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ultralytics(tmp_path / "own")
    write_split(tmp_path / "more/images", "d.jpg")
    (tmp_path / "own/list.txt").write_text(f"images/val/c.jpg\n{tmp_path}/own/images/val/c.jpg\n")
    description = f"train: [images/train, {tmp_path}/more/images]\nval: list.txt\n{NAMES}"
    (tmp_path / "own/data.yaml").write_text(description)
    monkeypatch.chdir(tmp_path)
    data, findings = read_with_findings("own")
    assert [record.path.name for record in data.splits["train"].records] == [
        "a.jpg",
        "b.jpg",
        "d.jpg",
    ]
    assert len(data.splits["val"].records) == 1
    assert [finding.code for finding in findings] == ["image-listed-twice"]


def darknet(root: Path) -> dict[str, str]:
    write_split(root / "images", "a.jpg", "b.jpg", "c.jpg")
    return {"train": "images/a.jpg\nimages/c.jpg\n", "val": "images/b.jpg\n"}


def cvat(root: Path) -> dict[str, str]:
    """Write what CVAT calls YOLO 1.1. Its paths begin in a folder that the archive lacks."""
    lists = {}
    for split, names in (("train", "ac"), ("valid", "b")):
        write_split(root / "images", *(f"{name}.jpg" for name in names))
        folder = root / f"obj_{split}_data"
        (root / "images").rename(folder)
        for label in (root / "labels").iterdir():
            label.rename(folder / label.name)
        (root / "labels").rmdir()
        lists[split] = "".join(f"data/{folder.name}/{name}.jpg\n" for name in names)
    return lists


@pytest.mark.parametrize(("write", "has_warning"), [(darknet, False), (cvat, True)])
@pytest.mark.parametrize("described", [False, True])
def test_lists_of_images_are_the_splits(
    write: Callable[[Path], dict[str, str]], has_warning: bool, described: bool, tmp_path: Path
) -> None:
    """They are, with data.yaml or without, and the splits may share their folders."""
    lists = write(tmp_path)
    for split, text in lists.items():
        (tmp_path / f"{split}.txt").write_text(text)
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    if described:
        entries = "".join(f"{split}: {split}.txt\n" for split in lists)
        (tmp_path / "data.yaml").write_text(NAMES + entries)
    data, findings = read_with_findings(tmp_path)
    assert {
        name: [(record.path.name, len(record.boxes)) for record in split.records]
        for name, split in data.splits.items()
    } == {"train": [("a.jpg", 1), ("c.jpg", 1)], "val": [("b.jpg", 1)]}
    assert [finding.code for finding in findings] == ["split-elsewhere"] * 2 * has_warning


@pytest.mark.parametrize("name", ["classes.txt", "_darknet.labels"])
def test_names_of_classes_beside_the_labels_of_every_split_are_the_same(
    name: str, tmp_path: Path
) -> None:
    """As in "YOLO Darknet" of Roboflow. LabelImg numbers the classes of each folder anew."""
    for split, image in (("train", "a"), ("valid", "b")):
        write_split(tmp_path / split, f"{image}.jpg")
        (tmp_path / f"labels/{image}.txt").rename(tmp_path / split / f"{image}.txt")
        (tmp_path / "labels").rmdir()
        (tmp_path / split / name).write_text("cat\ndog\n")
    data, findings = read_with_findings(tmp_path)
    assert [category.name for category in data.categories] == ["cat", "dog"]
    assert [len(data.splits[split].records[0].boxes) for split in ("train", "val")] == [1, 1]
    assert not findings
    (tmp_path / "valid" / name).write_text("dog\ncat\n")
    with pytest.raises(DataError, match="its names are not those of"):
        read_with_findings(tmp_path)


def test_names_of_classes_may_be_beside_the_labels_of_the_splits(tmp_path: Path) -> None:
    """LabelImg writes them into the folder in which it saves labels."""
    ultralytics(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "labels" / split / "classes.txt").write_text("cat\ndog\n")
    data, findings = read_with_findings(tmp_path)
    assert [category.name for category in data.categories] == ["cat", "dog"]
    assert not findings


@pytest.mark.parametrize("entry", ["images/train?", "images/train*/*"])
def test_wildcards_name_what_they_match_and_nothing_between(entry: str, tmp_path: Path) -> None:
    """In a dataset whose own name has the characters of wildcards."""
    root = tmp_path / "set [1]"
    for number, split in enumerate(("train1", "train2", "trial")):
        write_split(root / "images" / split, f"{number}.jpg")
    (root / "images/train1/notes.txt").write_text("mine")
    (root / "data.yaml").write_text(f"train: {entry}\nval: images/trial\n{NAMES}")
    data, findings = read_with_findings(root)
    assert [record.path.name for record in data.splits["train"].records] == ["0.jpg", "1.jpg"]
    assert [record.path.name for record in data.splits["val"].records] == ["2.jpg"]
    assert not findings


def test_a_test_split_may_have_no_labels(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    (tmp_path / "images/test").mkdir()
    Image.new("RGB", (80, 40)).save(tmp_path / "images/test/d.jpg")
    text = f"train: images/train\nval: images/val\ntest: images/test\n{NAMES}"
    (tmp_path / "data.yaml").write_text(text)
    report = check(tmp_path)
    assert not report.errors
    assert report.splits["test"].empty_images == 1


def test_lines_with_keypoints_are_boxes_and_others_are_not_guessed(tmp_path: Path) -> None:
    ultralytics(tmp_path)
    labels = tmp_path / "labels/train"
    keypoints = "0.4 0.4 2 0.6 0.4 2 0.5 0.5 0"
    (labels / "a.txt").write_text(f"0 0.5 0.5 0.5 0.25 {keypoints}\n1 0.5 0.5 0.5 0.25\n")
    (labels / "b.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    file = tmp_path / "data.yaml"
    text = f"train: images/train\nval: images/val\n{NAMES}kpt_shape: "
    file.write_text(f"{text}[3, 3]\n")
    data, findings = read_with_findings(tmp_path)
    boxes = [record.boxes.tolist() for record in data.splits["train"].records]
    assert boxes == [[[20, 15, 40, 10], [20, 15, 40, 10]], []]
    assert [finding.code for finding in findings] == ["label-malformed"]
    file.write_text(f"{text}3\n")
    with pytest.raises(DataError, match="'kpt_shape' is 3"):
        read_with_findings(tmp_path)


def test_the_description_in_a_subfolder_is_found(tmp_path: Path) -> None:
    roboflow(tmp_path / "unpacked/set")
    description = f"train: ../train/images\nval: ../valid/images\n{NAMES}"
    (tmp_path / "unpacked/set/data.yaml").write_text(description)
    report = check(tmp_path)
    assert not report.errors
    (tmp_path / "unpacked/copy").mkdir()
    (tmp_path / "unpacked/copy/data.yaml").write_text(description)
    with pytest.raises(DataError, match=r"copy/data.yaml', 'unpacked/set/data.yaml'"):
        read_with_findings(tmp_path)


def test_of_several_descriptions_the_one_with_the_name_of_the_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pets"
    ultralytics(root)
    for name, names in (("pets", "[cat, dog]"), ("old", "[hen, cow]")):
        text = f"train: images/train\nval: images/val\nnames: {names}\n"
        (root / f"{name}.yaml").write_text(text)
    for path in (root, "."):
        data, _ = read_with_findings(path)
        assert [category.name for category in data.categories] == ["cat", "dog"]
        monkeypatch.chdir(root)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    ultralytics(tmp_path / "set")
    train = tmp_path / "set/images/train"
    train.rename(tmp_path / "elsewhere")
    train.mkdir()
    try:
        (train / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere/again").symlink_to(train, target_is_directory=True)
    except OSError:
        pytest.skip("no links on this system")
    labels = tmp_path / "set/labels/train"
    (labels / "more").mkdir()
    for file in labels.glob("*.txt"):
        file.rename(labels / "more" / file.name)
    (tmp_path / "set/data.yaml").write_text(f"train: images/train\nval: images/val\n{NAMES}")
    data, findings = read_with_findings(tmp_path / "set")
    assert [len(record.boxes) for record in data.splits["train"].records] == [1, 1]
    assert not findings
