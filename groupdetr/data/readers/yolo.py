"""YOLO datasets, as Ultralytics reads them: data.yaml, images, and a text file of labels for each.

A line of a label file is a box, ``class x_center y_center width height``, or a polygon, ``class x y
x y x y ...``. Coordinates are fractions of the width and height of the image. The folder of the
labels is that of the images with ``images`` replaced by ``labels``. An image without a label file
has no objects.

Entries of data.yaml are often those of another machine, or of another arrangement of the folders.
Then the split is read from its folder in this dataset, and a warning says so.
"""

from __future__ import annotations

import glob
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

import yaml

from groupdetr.data.findings import Finding, Findings, RefusedError, printable, refused
from groupdetr.data.formats import DataFormat, RecordLocation, SplitAnnotations
from groupdetr.data.image_decoding import image_size
from groupdetr.data.image_files import (
    is_image_name,
    is_system_folder,
    is_system_name,
    search_folder,
)
from groupdetr.data.readers.record_locations import RecordLocations
from groupdetr.data.readers.text_file import read_lines, read_text
from groupdetr.data.split_names import SPLIT_ALIASES, split_folders
from groupdetr.settings import MANY
from groupdetr.structures.json_object import JsonObject

_YAML_SUFFIXES = (".yaml", ".yml")
_CLASS_FILES = ("classes.txt", "obj.names")
_MAX_DEPTH = 3  # folders between a folder and the data.yaml in it
_MAX_BROKEN_LINES = 100  # findings about lines of one label file; more would repeat them
# Fractions beyond 0 and 1 up to this are rounding of the program that wrote them.
_TOLERANCE = 0.01
_FLOAT_ERROR = 1e-11  # pixels; the error of the few operations from fractions to pixels


# the description of the dataset


@dataclass(frozen=True)
class _Description:
    """What data.yaml says, or the folders do: the classes, and where the images of splits are."""

    file: Path  # data.yaml, or the folder
    names: dict[int, str]
    sources: dict[str, list[Path]]  # split -> folders, lists and images
    pose: bool = False  # lines have keypoints behind the box
    findings: tuple[Finding, ...] = ()


def is_yolo(data: Path) -> bool:
    """Return whether a path is a YOLO dataset: its data.yaml, or a folder of it."""
    if data.is_file():
        return data.suffix.lower() in _YAML_SUFFIXES and _dataset_yaml(data) is not None
    return bool(data.is_dir() and (_yaml_files(data) or _has_label_folders(data)))


def read_yolo(data: Path) -> dict[str, SplitAnnotations]:
    """Read a YOLO dataset: every split that data.yaml names, or that has a folder.

    Raises `DataError` if the dataset cannot be read at all. Broken lines of label files become
    findings of the split.
    """
    description = _describe(data)
    locations = RecordLocations()
    splits = {}
    findings = list(description.findings)
    for name, sources in description.sources.items():
        split = _read_split(description, name, sources, locations)
        if split is not None:
            splits[name] = split
        else:
            findings.append(_without_test(description.file, "has no images"))
    if findings and splits:
        first = next(iter(splits))
        splits[first] = replace(splits[first], findings=(*findings, *splits[first].findings))
    return splits


FORMAT = DataFormat("YOLO", is_yolo, read_yolo)


def is_nested_yolo(data: Path) -> bool:
    """Return whether a folder below this one is a YOLO dataset, as in an unpacked archive."""
    return data.is_dir() and bool(_nested_yaml_files(data))


def read_nested_yolo(data: Path) -> dict[str, SplitAnnotations]:
    """Read the YOLO dataset in the folders below this one."""
    return read_yolo(_preferred(_nested_yaml_files(data), data))


# It is the last format to be tried: a dataset in another format may have a data.yaml somewhere.
NESTED_FORMAT = DataFormat("YOLO in a subfolder", is_nested_yolo, read_nested_yolo)


def _describe(data: Path) -> _Description:
    files = [data] if data.is_file() else _yaml_files(data)
    return _describe_yaml(_preferred(files, data)) if files else _describe_folder(data)


def _preferred(files: list[Path], data: Path) -> Path:
    """Return the one of several descriptions that has the name of one, or that of the folder."""
    for stems in (("data", "dataset"), (data.name.lower(),)):
        preferred = [file for file in files if file.stem.lower() in stems]
        if len(files) > 1 and len(preferred) == 1:
            files = preferred
    if len(files) > 1:
        names = ", ".join(printable(file.relative_to(data).as_posix()) for file in files)
        raise refused("several-descriptions", data, f"several files describe it: {names}")
    return files[0]


def _nested_yaml_files(folder: Path, depth: int = _MAX_DEPTH) -> list[Path]:
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
            files += _nested_yaml_files(path, depth - 1)
    return files


def _describe_yaml(file: Path) -> _Description:
    content = _dataset_yaml(file)
    if content is None:
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
        paths = [_source(entry, key, root, file) for entry in entries]
        if None in paths:
            elsewhere = _source_elsewhere(entries, split, root, file)
            if elsewhere is None and split == "test":
                # Exports of Roboflow name it even if there is none.
                findings.append(_without_test(file, f"is {printable(value)}, which does not exist"))
                continue
            if elsewhere is None:
                what = f"{key!r} is {printable(value)}, which is neither in {root} nor beside"
                raise refused("split-not-found", file, f"{what} this file")
            paths = [elsewhere]
            what = f"{key!r} is {printable(value)}, which does not exist; {elsewhere} does"
            findings.append(Finding("split-elsewhere", str(file), "", what))
        sources[split] = [path for path in paths if path is not None]
    if not sources:
        raise refused("dataset-yaml", file, "it names no images: 'train', 'val' and 'test'")
    is_pose = "kpt_shape" in content
    return _Description(file, names, sources, is_pose, tuple(findings))


def _without_test(file: Path, what: str) -> Finding:
    return Finding("test-split-missing", str(file), "", f"'test' {what}")


def _yaml_files(folder: Path) -> list[Path]:
    """Return the files of a folder that describe a dataset."""
    names = sorted(os.listdir(folder))
    files = [folder / name for name in names if name.lower().endswith(_YAML_SUFFIXES)]
    return [file for file in files if not is_system_name(file.name) and _dataset_yaml(file)]


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
        content = yaml.load(read_text(file), Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, OSError, RefusedError, RecursionError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _names(content: dict[str, object], file: Path, findings: list[Finding]) -> dict[int, str]:
    """Return the names of the classes by number."""
    value = content.get("names")
    if value is None and isinstance(count := content.get("nc"), int) and 0 < count < MANY:
        what = f"there are no 'names' of the {count} classes"
        findings.append(Finding("class-names-invented", str(file), "", what))
        return {number: f"class_{number}" for number in range(count)}
    names: dict[int, str] = {}
    if isinstance(value, list):
        names = {number: str(name) for number, name in enumerate(value)}
    elif isinstance(value, dict):
        for key, name in value.items():
            if not str(key).isdecimal() or isinstance(key, bool):
                what = f"the number of a class is {printable(key)}"
                raise refused("class-names", file, what)
            names[int(key)] = str(name)
    elif isinstance(value, str) and (file.parent / value).is_file():
        names = _names_of_lines(file.parent / value)
    if not names:
        raise refused("class-names", file, f"'names' is {printable(value)}")
    count = content.get("nc")
    if isinstance(count, int) and count != len(names):
        what = f"'nc' is {count}, and 'names' has {len(names)} names"
        raise refused("class-names", file, what)
    return names


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


def _source(entry: object, key: str, root: Path, file: Path) -> Path | None:
    """Return the folder, list of images, or image that an entry of data.yaml names.

    None if it does not exist.
    """
    if not isinstance(entry, str) or not entry.strip():
        raise refused("dataset-yaml", file, f"an entry of {key!r} is {printable(entry)}")
    # Roboflow writes ../train/images for the folder beside the file.
    inside = re.sub(r"^(\.\./)+", "", entry.replace("\\", "/"))
    for folder in (root, file.parent):
        for name in (entry, inside):
            path = Path(os.path.normpath(folder / name))
            if path.exists():
                return path
            if glob.has_magic(name) and (matches := glob.glob(str(folder / name))):
                return Path(os.path.commonpath(matches))
    return None


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
    return any(_label_folders(folder)) or (
        any((folder / name).is_file() for name in _CLASS_FILES)
        and any(is_image_name(name) for name in os.listdir(folder))
    )


def _label_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders called labels that have text files, in ``folder`` and one level below."""
    for pattern in ("labels", "*/labels"):
        for labels in sorted(folder.glob(pattern)):
            if next(labels.glob("*.txt"), None) or next(labels.glob("*/*.txt"), None):
                yield labels


def _describe_folder(root: Path) -> _Description:
    folders = [root, *_label_folders(root)]
    class_files = [parent / name for parent in folders for name in _CLASS_FILES]
    class_files = [file for file in class_files if file.is_file()]
    if class_files:
        names = _names_of_lines(class_files[0])
        if not names:
            raise refused("class-names", class_files[0], "it has no names")
    else:
        names = _names_of_yaml(root)
    sources = {split: [folder] for split, folder in split_folders(root).items()}
    return _Description(root, names, sources or {"train": [root]})


def _names_of_yaml(root: Path) -> dict[int, str]:
    """Return the names of the classes in a data.yaml that names no splits."""
    for suffix in _YAML_SUFFIXES:
        for file in sorted(root.glob(f"*{suffix}")):
            content = _yaml_object(file)
            if content and isinstance(content.get("names"), (list, dict)):
                return _names(content, file, [])
    what = "it has labels of YOLO, but neither data.yaml nor classes.txt"
    raise refused("class-names", root, what)


# images


@dataclass
class _Content:
    """The COCO annotations of a split while they are collected."""

    file: Path
    images: list[JsonObject] = field(default_factory=list)
    annotations: list[JsonObject] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def _read_split(
    description: _Description, name: str, sources: list[Path], locations: RecordLocations
) -> SplitAnnotations | None:
    """Return a split; None for a test split without images."""
    file = sources[0] if len(sources) == 1 else description.file
    split = _Content(file)
    listed = [image for source in sources for image in _images_of(source, split.findings)]
    images = list(dict.fromkeys(listed))
    if len(images) < len(listed):
        what = f"{len(listed) - len(images)} of {len(listed)} images were named before"
        split.findings.append(Finding("image-listed-twice", str(file), "", what))
    if not images and name == "test":
        return None
    if not images:
        where = ", ".join(str(source) for source in sources)
        what = f"there are no images in {where}"
        if len(sources) == 1 and sources[0].is_dir():
            left_out = search_folder(sources[0], follow_links=True).describe_left_out()
            what += f" ({left_out})" if left_out else ""
        raise refused("split-not-found", description.file, what)
    folder = Path(os.path.commonpath([image.parent for image in images]))
    labels = [label_file(image) for image in images]
    exist = [path.is_file() for path in labels]
    if not any(exist):
        what = f"none of its {len(images)} images has a label file, such as {labels[0]}"
        split.findings.append(Finding("labels-missing", str(file), "", what))
    for image, label, exists in zip(images, labels, exist):
        image_id = locations.add_image(RecordLocation(str(image), ""))
        entry: JsonObject = {"id": image_id, "file_name": image.relative_to(folder).as_posix()}
        split.images.append(entry)
        try:
            width, height = image_size(image)
        except RefusedError:
            continue  # the image is reported when its record is read
        entry["width"], entry["height"] = width, height
        if exists:
            _read_labels(label, description, entry, split, locations)
    _check_labels_without_image(labels, split)
    categories = [{"id": number, "name": text} for number, text in description.names.items()]
    content = {"images": split.images, "annotations": split.annotations, "categories": categories}
    return SplitAnnotations(content, folder, file, tuple(split.findings), locations)


def _images_of(source: Path, findings: list[Finding]) -> Iterator[Path]:
    """Yield the images of a folder, in the order of their names, or of a list in its order."""
    if source.is_dir():
        yield from search_folder(source, follow_links=True).images
    elif is_image_name(source.name):
        yield source
    else:
        for number, line in enumerate(read_lines(source), 1):
            name = line.strip().replace("\\", "/")
            if name and not is_image_name(name):
                what = f"it is {printable(name)}"
                findings.append(Finding("list-line", str(source), f"line {number}", what))
            elif name:
                # Ultralytics: ./ at the start is the folder of the list.
                path = Path(os.path.normpath(source.parent / name))
                yield path if path.exists() or not Path(name).exists() else Path(name).absolute()


def label_file(image: Path) -> Path:
    """Return the label file of an image: in the folder of labels, or beside the image."""
    head, separator, tail = str(image).rpartition(f"{os.sep}images{os.sep}")
    if separator:
        in_labels = Path(f"{head}{os.sep}labels{os.sep}{tail}").with_suffix(".txt")
        beside = image.with_suffix(".txt")
        if in_labels.is_file() or not beside.is_file():
            return in_labels
        return beside
    return image.with_suffix(".txt")


def _check_labels_without_image(labels: Iterable[Path], split: _Content) -> None:
    """Report label files that belong to no image, such as those of images that were renamed."""
    by_folder: dict[Path, set[str]] = {}
    for label in labels:
        by_folder.setdefault(label.parent, set()).add(label.name)
    for folder, known in by_folder.items():
        if not folder.is_dir():
            continue
        for name in sorted(os.listdir(folder)):
            is_label = name.endswith(".txt") and name not in _CLASS_FILES
            if is_label and not is_system_name(name) and name not in known:
                what = "no image has this name"
                split.findings.append(Finding("labels-without-image", str(folder / name), "", what))


# labels


def _read_labels(
    file: Path,
    description: _Description,
    image: JsonObject,
    split: _Content,
    locations: RecordLocations,
) -> None:
    """Add the objects of a label file to a split."""
    findings = Findings(file)
    try:
        lines = read_lines(file)
    except RefusedError as error:
        split.findings.append(error.finding)
        return
    size = (image["width"], image["height"])
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(findings) >= _MAX_BROKEN_LINES:
            break
        parsed = _parse_line(words, description, f"line {number}", findings)
        if parsed is None:
            continue
        category, coordinates, decimals = parsed
        annotation: JsonObject = {
            "id": locations.add_annotation(RecordLocation(str(file), sys.intern(f"line {number}"))),
            "image_id": image["id"],
            "category_id": category,
            "iscrowd": 0,
        }
        if len(coordinates) == 4:
            annotation["bbox"] = box_in_pixels(coordinates, decimals, size)
        else:
            polygon = _polygon_in_pixels(coordinates, decimals, size)
            annotation["bbox"] = _bounds(polygon)
            annotation["segmentation"] = [polygon]
            annotation["area"] = _area(polygon)
        split.annotations.append(annotation)
    split.findings += findings


def _parse_line(
    words: list[str], description: _Description, record: str, findings: Findings
) -> tuple[int, list[float], int] | None:
    """Return the class, the coordinates, and how many decimals they have; None if it is refused."""
    text = printable(" ".join(words))
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        findings.add("label-malformed", record, f"it is {text}")
        return None
    category, coordinates = numbers[0], numbers[1:]
    if description.pose:
        coordinates = coordinates[:4]
    is_box = len(coordinates) == 4
    is_polygon = len(coordinates) >= 6 and len(coordinates) % 2 == 0
    if not (is_box or is_polygon) or not all(map(math.isfinite, numbers)):
        score = ": the sixth number may be a score" if len(numbers) == 6 else ""
        findings.add("label-malformed", record, f"it is {text}{score}")
        return None
    if category not in description.names:
        what = f"the class is {words[0]}, and there are {len(description.names)} names"
        findings.add("label-class", record, what)
        return None
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in coordinates):
        findings.add("label-not-normalised", record, f"it is {text}")
        return None
    decimals = min(_decimals(word) for word in words[1 : 1 + len(coordinates)])
    return int(category), coordinates, decimals


def _decimals(word: str) -> int:
    """Return to how many decimals a number was written, at most those of a float."""
    mantissa, _, exponent = word.lower().partition("e")
    written = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return min(max(written, 4), 16)


def box_in_pixels(coordinates: list[float], decimals: int, size: tuple[int, int]) -> list[float]:
    """Return a box, center x, center y, width and height as fractions, as COCO's in pixels.

    x, y, width and height were written to so many ``decimals``, so they are known to half of the
    last one. See `_rounded`.
    """
    box = [0.0] * 4
    for axis in (0, 1):
        center, length, pixels = coordinates[axis], coordinates[axis + 2], size[axis]
        error = 0.5 * 10.0**-decimals * pixels
        box[axis + 2] = _rounded(length * pixels, error)
        box[axis] = _rounded(center * pixels - length * pixels / 2, 1.5 * error)
    return box


def _polygon_in_pixels(
    coordinates: list[float], decimals: int, size: tuple[int, int]
) -> list[float]:
    pixels = [size[index % 2] for index in range(len(coordinates))]
    error = 0.5 * 10.0**-decimals
    return [_rounded(value * side, error * side) for value, side in zip(coordinates, pixels)]


def _rounded(value: float, error: float) -> float:
    """Return the number with the fewest decimals, two or more, within the ``error`` of a value.

    Annotations are mostly in whole pixels or hundredths. Fractions with six decimals, as most
    programs write them, are not exact. This way the same box is read as from the COCO file that it
    was converted from, and nothing changes by more than is unknown.
    """
    for decimals in range(2, 12):
        rounded = round(value, decimals)
        if abs(value - rounded) <= error + _FLOAT_ERROR:
            return rounded
    return value


def _bounds(polygon: list[float]) -> list[float]:
    x, y = polygon[0::2], polygon[1::2]
    width, height = round(max(x) - min(x), 10), round(max(y) - min(y), 10)
    return [min(x), min(y), width, height]


def _area(polygon: list[float]) -> float:
    """Return the area of a polygon in square pixels, by the shoelace formula."""
    x, y = polygon[0::2], polygon[1::2]
    twice = sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))
    return abs(twice) / 2
