"""The description of a YOLO dataset: its classes, and where the images of its splits are.

It is data.yaml, or the folders and the lists of images do without one. Entries of data.yaml are
often those of another machine, or of another arrangement of the folders. Then the split is read
from its folder in this dataset, and a warning says so.
"""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PureWindowsPath

import yaml

from groupdetr.data.findings import Finding, RefusedError, printable, refused
from groupdetr.data.image_files import (
    is_image_name,
    is_system_folder,
    is_system_name,
    search_folder,
)
from groupdetr.data.paths import dataset_name
from groupdetr.data.readers.text_file import read_lines, read_text
from groupdetr.data.split_names import SPLIT_ALIASES, expect_one_folder, split_folders
from groupdetr.settings import MANY

CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")  # of labelImg, Darknet, Roboflow
_YAML_SUFFIXES = (".yaml", ".yml")
_STEMS = ("data", "dataset")  # of data.yaml
_MAX_DEPTH = 3  # folders between a folder and the data.yaml in it


@dataclass(frozen=True)
class Description:
    """What data.yaml says, or the folders do: the classes, and where the images of splits are."""

    file: Path  # data.yaml, or the folder
    names: dict[int, str]
    sources: dict[str, list[Path]]  # split -> folders, lists and images
    root: Path  # the folder that paths are relative to
    keypoint_numbers: int = 0  # numbers behind the box of a line that has keypoints
    findings: tuple[Finding, ...] = ()


def is_yolo(data: Path) -> bool:
    """Return whether a path is a YOLO dataset: its data.yaml, or a folder of it."""
    if data.is_file():
        return data.suffix.lower() in _YAML_SUFFIXES and _is_description(data)
    return bool(data.is_dir() and (_yaml_files(data) or _has_label_folders(data)))


def is_nested_yolo(data: Path) -> bool:
    """Return whether a folder below this one is a YOLO dataset, as in an unpacked archive."""
    return data.is_dir() and bool(nested_yaml_files(data))


def describe(data: Path) -> Description:
    """Read the description of a dataset: its data.yaml, else the names of its folders."""
    files = [data] if data.is_file() else _yaml_files(data)
    if not files and _class_file(data) is None:
        # It may be in a folder beside those of the images: config/data.yaml.
        files = nested_yaml_files(data)
    return _describe_yaml(preferred_file(files, data)) if files else _describe_folder(data)


def preferred_file(files: list[Path], data: Path) -> Path:
    """Return the one of several descriptions that has the name of one, or that of the folder."""
    for stems in (_STEMS, (dataset_name(data).lower(),)):
        preferred = [file for file in files if file.stem.lower() in stems]
        if len(files) > 1 and len(preferred) == 1:
            files = preferred
    if len(files) > 1:
        names = ", ".join(printable(file.relative_to(data).as_posix()) for file in files)
        raise refused("several-descriptions", data, f"several files describe it: {names}")
    return files[0]


def nested_yaml_files(folder: Path, depth: int = _MAX_DEPTH) -> list[Path]:
    """Return the files that describe a dataset in the folders below ``folder``."""
    files = []
    with os.scandir(folder) as entries:
        subfolders = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    for path in map(Path, subfolders):
        is_content = path.name.lower() in ("images", "labels") or path.name.startswith(".")
        if is_content or is_system_folder(path.name):
            continue
        files += _yaml_files(path)
        if depth > 1:
            files += nested_yaml_files(path, depth - 1)
    return files


def _describe_yaml(file: Path) -> Description:
    content = _dataset_yaml(file)
    if content is None:
        _parse(file)  # it raises the reason if the file is not YAML
        raise refused("dataset-yaml", file, "it does not describe a dataset")
    findings: list[Finding] = []
    names = _names(content, file, findings)
    root = _root(content.get("path"), file)
    sources: dict[str, list[Path]] = {}
    for key, value in content.items():
        split = SPLIT_ALIASES.get(str(key).lower())
        entries = value if isinstance(value, list) else [value]
        if split is None or not any(entries):
            continue
        if split in sources:
            raise refused("dataset-yaml", file, f"it has several entries for the {split} split")
        found = [_sources(entry, key, root, file) for entry in entries]
        paths = list(chain(*found))
        if [] in found:
            elsewhere = _source_elsewhere(entries, split, root, file)
            if elsewhere is None and split == "test":
                # Exports of Roboflow name it even if there is none.
                findings.append(without_test(file, f"is {printable(value)}, which does not exist"))
                continue
            if elsewhere is None:
                what = f"{key!r} is {printable(value)}, which is neither in {root} nor beside"
                raise refused("split-not-found", file, f"{what} this file")
            paths = [elsewhere]
            what = f"{key!r} is {printable(value)}, which does not exist; {elsewhere} does"
            findings.append(Finding("split-elsewhere", str(file), "", what))
        sources[split] = paths
    if not sources:
        raise refused("dataset-yaml", file, "it names no images: 'train', 'val' and 'test'")
    keypoint_numbers = _keypoint_numbers(content.get("kpt_shape"), file)
    return Description(file, names, sources, root, keypoint_numbers, tuple(findings))


def _keypoint_numbers(shape: object, file: Path) -> int:
    """Return how many numbers the keypoints of an object have: 51 of kpt_shape [17, 3]."""
    if shape is None:
        return 0
    if isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape):
        number, dimensions = shape
        if 0 < number < MANY and dimensions in (2, 3):
            return number * dimensions
    raise refused("keypoint-shape", file, f"'kpt_shape' is {printable(shape)}")


def without_test(file: Path, what: str) -> Finding:
    return Finding("test-split-missing", str(file), "", f"'test' {what}")


def _yaml_files(folder: Path) -> list[Path]:
    """Return the files of a folder that describe a dataset."""
    names = sorted(os.listdir(folder))
    files = [folder / name for name in names if name.lower().endswith(_YAML_SUFFIXES)]
    return [file for file in files if not is_system_name(file.name) and _is_description(file)]


def _is_description(file: Path) -> bool:
    """Return whether a YAML file describes a dataset, or has the name of one and is broken."""
    if _dataset_yaml(file) is not None:
        return True
    if file.stem.lower() not in _STEMS:
        return False
    try:
        _parse(file)
    except RefusedError:
        return True
    return False


def _dataset_yaml(file: Path) -> dict[str, object] | None:
    """Return the content of data.yaml; None if the file is something else."""
    content = _yaml_object(file)
    if content is None:
        return None
    keys = {str(key).lower() for key in content}
    has_splits = bool(keys & SPLIT_ALIASES.keys())
    return content if has_splits and keys & {"names", "nc", "path"} else None


def _yaml_object(file: Path) -> dict[str, object] | None:
    """Return the content of a YAML file that has keys and values; None for any other file."""
    try:
        if file.stat().st_size > 1 << 22:
            return None
        content = _parse(file)
    except (OSError, RefusedError):
        return None
    return content if isinstance(content, dict) else None


def _parse(file: Path) -> object:
    """Return the content of a YAML file. `RefusedError` with the line if it is no YAML."""
    text = read_text(file)
    try:
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        record = f"line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None)
        what = f"it is not YAML ({problem})" if problem else "it is not YAML"
        raise RefusedError(Finding("unreadable-yaml", str(file), record, what)) from None


def _names(content: dict[str, object], file: Path, findings: list[Finding]) -> dict[int, str]:
    """Return the names of the classes by number."""
    value = content.get("names")
    count = _whole_number(content.get("nc"))
    if value is None and count is not None and 0 < count < MANY:
        what = f"there are no 'names' of the {count} classes"
        findings.append(Finding("class-names-invented", str(file), "", what))
        return {number: f"class_{number}" for number in range(count)}
    names: dict[int, str] = {}
    if isinstance(value, list):
        names = {number: _text(name) for number, name in enumerate(value)}
    elif isinstance(value, dict):
        for key, name in value.items():
            if not str(key).isdecimal() or isinstance(key, bool):
                what = f"the number of a class is {printable(key)}"
                raise refused("class-names", file, what)
            names[int(key)] = _text(name)
    elif isinstance(value, str) and (file.parent / value).is_file():
        names = _names_of_lines(file.parent / value)
    if not names:
        raise refused("class-names", file, f"'names' is {printable(value)}")
    for number, name in names.items():
        if not name.strip():
            raise refused("class-names", file, f"the name of class {number} is empty")
    if count is not None and count != len(names):
        what = f"'nc' is {count}, and 'names' has {len(names)} names"
        raise refused("class-names", file, what)
    return names


def _text(name: object) -> str:
    return "" if name is None else str(name)


def _whole_number(value: object) -> int | None:
    """Return a whole number that may be written as text or with a point; None for all else."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _names_of_lines(file: Path) -> dict[int, str]:
    lines = [line.strip() for line in read_lines(file)]
    while lines and not lines[-1]:
        lines.pop()
    return dict(enumerate(lines))


def _root(path: object, file: Path) -> Path:
    """Return the folder that the paths in data.yaml are relative to.

    Downloads often have the path of somebody else's machine. Then it is the folder of the file.
    """
    if isinstance(path, str) and path.strip():
        for candidate in (file.parent / path, Path(path)):
            if candidate.is_dir():
                return candidate
    return file.parent


def _sources(entry: object, key: str, root: Path, file: Path) -> list[Path]:
    """Return the folder, list of images, or image that an entry of data.yaml names.

    An entry with wildcards may name several. The list is empty if nothing of this name exists.
    """
    if not isinstance(entry, str) or not entry.strip():
        raise refused("dataset-yaml", file, f"an entry of {key!r} is {printable(entry)}")
    # Roboflow writes ../train/images for the folder beside the file.
    inside = re.sub(r"^(\.\./)+", "", entry.replace("\\", "/"))
    for folder in (root, file.parent):
        for name in (entry, inside):
            path = Path(os.path.normpath(folder / name))
            if path.exists():
                return [path]
            if glob.has_magic(name) and (paths := _matches(folder, name)):
                return paths
    return []


def _matches(folder: Path, pattern: str) -> list[Path]:
    """Return the folders and the images that a name with wildcards stands for, else the lists."""
    names = sorted(glob.glob(pattern, root_dir=folder))
    paths = [Path(os.path.normpath(folder / name)) for name in names]
    images = [path for path in paths if path.is_dir() or is_image_name(path.name)]
    return images or [path for path in paths if _is_image_list(path)]


def _source_elsewhere(entries: list[object], split: str, root: Path, file: Path) -> Path | None:
    """Return the folder or the list of a split whose entry in data.yaml does not exist.

    It is the end of the path, from the name of the split on: train/images of
    /home/somebody/data/train/images. Else it is a folder of the name of the split. None if there is
    no such folder.
    """
    if len(entries) != 1:
        return None
    parts = PureWindowsPath(str(entries[0])).parts  # it knows / and \\
    for start in range(1, len(parts)):
        # The rest of the path must still tell which split it is: "images" may be those of all.
        if not any(_split_of_name(part) == split for part in parts[start:]):
            break
        for folder in (root, file.parent):
            path = folder.joinpath(*parts[start:])
            if path.exists():
                return path
    for folder in (root, file.parent):
        path = split_folders(folder).get(split, folder)
        if path != folder and search_folder(path, follow_links=True).images:
            return path
    return None


def _split_of_name(name: str) -> str | None:
    """Return the split that a folder or a list is of, such as train2017 or train.txt."""
    return SPLIT_ALIASES.get(Path(name).stem.lower().rstrip("0123456789"))


# a folder without data.yaml


def _has_label_folders(folder: Path) -> bool:
    if any(_label_folders(folder)):
        return True
    if _class_files([folder]):
        return _has_labelled_image(folder) or bool(split_lists(folder))
    splits = split_folders(folder).values()
    return bool(_class_files(splits)) and any(map(_has_labelled_image, splits))


def _has_labelled_image(folder: Path) -> bool:
    """Return whether an image has a text file beside it. Pascal VOC has XML files there."""
    names = set(os.listdir(folder))
    return any(f"{Path(name).stem}.txt" in names for name in names if is_image_name(name))


def _label_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders called labels that have text files, in ``folder`` and one level below."""
    for pattern in ("labels", "*/labels"):
        for labels in sorted(folder.glob(pattern)):
            if next(labels.glob("*.txt"), None) or next(labels.glob("*/*.txt"), None):
                yield labels


def _describe_folder(root: Path) -> Description:
    expect_one_folder(root)
    class_file = _class_file(root)
    if class_file is not None:
        names = _names_of_lines(class_file)
        if not names:
            raise refused("class-names", class_file, "it has no names")
    else:
        names = _names_of_yaml(root)
    sources = {split: [path] for split, path in (split_folders(root) or split_lists(root)).items()}
    return Description(root, names, sources or {"train": [root]}, root)


def split_lists(root: Path) -> dict[str, Path]:
    """Return the lists of images in a folder that have the names of splits: train.txt, val.txt.

    There are none without one of train.
    """
    lists = {}
    for name in sorted(os.listdir(root)):
        split = SPLIT_ALIASES.get(name.lower().removesuffix(".txt"))
        if split and _is_image_list(root / name):
            lists[split] = root / name
    return lists if "train" in lists else {}


def _is_image_list(file: Path) -> bool:
    """Return whether a file is a text whose first line is the name of an image."""
    if file.suffix.lower() != ".txt" or is_system_name(file.name) or not file.is_file():
        return False
    try:
        lines = [line.strip() for line in read_lines(file)]
    except RefusedError:
        return False
    return is_image_name(next(filter(None, lines), ""))


def _class_file(root: Path) -> Path | None:
    """Return the file with the names of the classes, one on each line; None if there is none.

    It is in the folder of the dataset, in those of the splits, or in those of the labels, such as
    labels/train. Several must have the same names, because the numbers of the labels refer to them.
    """
    labels = list(_label_folders(root))
    labels += [folder for parent in labels for folder in sorted(parent.glob("*/"))]
    for folders in ([root], split_folders(root).values(), labels):
        files = _class_files(folders)
        for file in files[1:]:
            if _names_of_lines(file) != _names_of_lines(files[0]):
                raise refused("class-names", file, f"its names are not those of {files[0]}")
        if files:
            return files[0]
    return None


def _class_files(folders: Iterable[Path]) -> list[Path]:
    """Return the files with the names of the classes in some folders, at most one of each."""
    files = []
    for folder in folders:
        in_folder = (folder / name for name in CLASS_FILES)
        files += [file for file in in_folder if file.is_file()][:1]
    return files


def _names_of_yaml(root: Path) -> dict[int, str]:
    """Return the names of the classes in a data.yaml that names no splits."""
    for suffix in _YAML_SUFFIXES:
        for file in sorted(root.glob(f"*{suffix}")):
            content = _yaml_object(file)
            if content and isinstance(content.get("names"), (list, dict)):
                return _names(content, file, [])
    what = "it has labels of YOLO, but neither data.yaml nor classes.txt"
    raise refused("class-names", root, what)
