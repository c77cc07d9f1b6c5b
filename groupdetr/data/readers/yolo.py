"""YOLO datasets, as Ultralytics reads them: data.yaml, images, and a text file of labels for each.

A line of a label file is a box, ``class x_center y_center width height``, or a polygon, ``class x y
x y x y ...``. Coordinates are fractions of the width and height of the image. The folder of the
labels is that of the images with ``images`` replaced by ``labels``. An image without a label file
has no objects. Images are turned by their EXIF orientation. `yolo_description.py` reads data.yaml.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

from groupdetr.data.findings import Finding, Findings, RefusedError, printable, refused
from groupdetr.data.formats import DataFormat, RecordLocation, SplitAnnotations
from groupdetr.data.image_decoding import image_size
from groupdetr.data.image_files import is_image_name, is_system_name, search_folder
from groupdetr.data.readers.record_locations import RecordLocations
from groupdetr.data.readers.text_file import read_lines
from groupdetr.data.readers.yolo_description import (
    CLASS_FILES,
    Description,
    describe,
    is_nested_yolo,
    is_yolo,
    nested_yaml_files,
    preferred_file,
    without_test,
)
from groupdetr.structures.json_object import JsonObject

PurePathT = TypeVar("PurePathT", bound=PurePath)
_MAX_BROKEN_LINES = 100  # findings about lines of one label file; more would repeat them
# Fractions beyond 0 and 1 up to this are rounding of the program that wrote them.
_TOLERANCE = 0.01
_FLOAT_ERROR = 1e-11  # pixels; the error of the few operations from fractions to pixels


def read_yolo(data: Path) -> dict[str, SplitAnnotations]:
    """Read a YOLO dataset: every split that data.yaml names, or that has a folder.

    Raises `DataError` if the dataset cannot be read at all. Broken lines of label files become
    findings of the split.
    """
    description = describe(data)
    locations = RecordLocations(description.file)
    splits = {}
    findings = list(description.findings)
    labels: list[Path] = []  # of the images of all splits, which may share a folder
    for name, sources in description.sources.items():
        split = _read_split(description, name, sources, locations, labels)
        if split is not None:
            splits[name] = split
        else:
            findings.append(without_test(description.file, "has no images"))
    lists = set(chain(*description.sources.values()))
    findings += _labels_without_image(labels, lists)
    if findings and splits:
        first = next(iter(splits))
        splits[first] = replace(splits[first], findings=(*findings, *splits[first].findings))
    return splits


FORMAT = DataFormat("YOLO", is_yolo, read_yolo)


def read_nested_yolo(data: Path) -> dict[str, SplitAnnotations]:
    """Read the YOLO dataset in the folders below this one."""
    return read_yolo(preferred_file(nested_yaml_files(data), data))


# It is the last format to be tried: a dataset in another format may have a data.yaml somewhere.
NESTED_FORMAT = DataFormat("YOLO in a subfolder", is_nested_yolo, read_nested_yolo)


# images


@dataclass
class _Content:
    """The COCO annotations of a split while they are collected."""

    file: Path
    images: list[JsonObject] = field(default_factory=list)
    annotations: list[JsonObject] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def _read_split(
    description: Description,
    name: str,
    sources: list[Path],
    locations: RecordLocations,
    all_labels: list[Path],
) -> SplitAnnotations | None:
    """Return a split; None for a test split without images.

    The label files of its images, existing or not, are added to ``all_labels``.
    """
    file = sources[0] if len(sources) == 1 else description.file
    split = _Content(file)
    listed = [
        image
        for source in sources
        for image in _images_of(source, description.root, split.findings)
    ]
    if any(image.is_absolute() for image in listed):
        # Relative and absolute paths have no common folder.
        listed = [Path(os.path.abspath(image)) for image in listed]
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
    all_labels += labels
    exist = [path.is_file() for path in labels]
    if not any(exist) and name != "test":  # a test split may have no labels
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
    categories = [{"id": number, "name": text} for number, text in description.names.items()]
    content = {"images": split.images, "annotations": split.annotations, "categories": categories}
    findings = tuple(split.findings)
    return SplitAnnotations(content, folder, file, findings, locations, upright=True)


def _images_of(source: Path, root: Path, findings: list[Finding]) -> Iterator[Path]:
    """Yield the images of a folder, in the order of their names, or of a list in its order.

    Names in a list are relative to the folder of the list, to ``root``, that of the dataset, or to
    the current folder. Of a path of another machine, the end counts that exists in ``root``.
    """
    if source.is_dir():
        search = search_folder(source, follow_links=True)
        # An image that is missing behind its link is reported when its record is read.
        missing = [link for link in search.broken_links if is_image_name(link.name)]
        yield from sorted([*search.images, *missing])
    elif is_image_name(source.name):
        yield source
    else:
        moved: list[tuple[str, Path]] = []
        for number, line in enumerate(read_lines(source), 1):
            name = line.strip().replace("\\", "/")
            if name and not is_image_name(name):
                what = f"it is {printable(name)}"
                findings.append(Finding("list-line", str(source), f"line {number}", what))
            elif name:
                # Ultralytics: ./ at the start is the folder of the list, all else is relative to
                # the current folder, which mostly is that of the dataset.
                folders = (source.parent, root, Path.cwd())
                paths = [Path(os.path.normpath(folder / name)) for folder in folders]
                path = next((path for path in paths if path.exists()), None)
                if path is None and (path := _end_of_path(name, (source.parent, root))):
                    moved.append((name, path))
                yield path or paths[0]
        if moved:
            name, path = moved[0]
            what = f"{len(moved)} of its images are elsewhere, such as {printable(name)}: {path}"
            findings.append(Finding("split-elsewhere", str(source), "", what))


def _end_of_path(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the longest end of a path that exists in one of ``folders``; None if none does.

    Programs write the paths of their machine, as /home/me/darknet/data/images/1.jpg.
    """
    parts = PurePosixPath(name).parts
    for start in range(1, len(parts)):
        for folder in folders:
            path = folder.joinpath(*parts[start:])
            if path.exists():
                return path
    return None


def label_file(image: Path) -> Path:
    """Return the label file of an image: in the folder of labels, or beside the image."""
    beside = image.with_suffix(".txt")
    in_labels = path_in_labels(image)
    # Of two that do not exist, that in the folder of labels is the one to be written.
    return in_labels if in_labels.is_file() or not beside.is_file() else beside


def path_in_labels(image: PurePathT) -> PurePathT:
    """Return where programs for YOLO look for the labels of an image.

    It is in ``labels`` instead of ``images``, the last folder of this name in its path, and beside
    the image if there is none.
    """
    beside = image.with_suffix(".txt")
    folders = beside.parent.parts
    if "images" not in folders:
        return beside
    last = len(folders) - 1 - folders[::-1].index("images")
    return type(image)(*folders[:last], "labels", *folders[last + 1 :], beside.name)


def _labels_without_image(labels: Iterable[Path], lists: Set[Path]) -> Iterator[Finding]:
    """Find label files that belong to no image, such as those of images that were renamed.

    ``labels`` are those of all images. ``lists`` are files with the names of images.
    """
    by_folder: dict[Path, set[str]] = {}
    for label in labels:
        by_folder.setdefault(label.parent, set()).add(label.name)
    for folder, known in by_folder.items():
        if not folder.is_dir():
            continue
        for name in sorted(os.listdir(folder)):
            is_other = name in CLASS_FILES or is_system_name(name) or folder / name in lists
            if name.endswith(".txt") and name not in known and not is_other:
                what = "no image has this name"
                yield Finding("labels-without-image", str(folder / name), "", what)


# labels


def _read_labels(
    file: Path,
    description: Description,
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
    words: list[str], description: Description, record: str, findings: Findings
) -> tuple[int, list[float], int] | None:
    """Return the class, the coordinates, and how many decimals they have; None if it is refused."""
    text = printable(" ".join(words))
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        findings.add("label-malformed", record, f"it is {text}")
        return None
    category, coordinates = numbers[0], numbers[1:]
    with_keypoints = 4 + description.keypoint_numbers
    if description.keypoint_numbers and len(coordinates) not in (4, with_keypoints):
        # It may be a polygon, or keypoints of another number. Both would be guesses.
        what = f"'kpt_shape' allows 4 or {with_keypoints} numbers behind the class, not"
        findings.add("label-malformed", record, f"it is {text}: {what} {len(coordinates)}")
        return None
    if description.keypoint_numbers:
        coordinates = coordinates[:4]
    is_box = len(coordinates) == 4
    is_polygon = len(coordinates) >= 6 and len(coordinates) % 2 == 0
    if not (is_box or is_polygon) or not all(map(math.isfinite, numbers)):
        sixth = ": the sixth number may be a score or a track" if len(numbers) == 6 else ""
        findings.add("label-malformed", record, f"it is {text}{sixth}")
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
