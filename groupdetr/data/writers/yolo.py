"""Writing YOLO datasets as Ultralytics reads them: data.yaml, images/train and labels/train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from groupdetr.data.image_decoding import is_turned
from groupdetr.data.json_values import parse_numbers
from groupdetr.data.readers.yolo import path_in_labels
from groupdetr.data.records import Floats
from groupdetr.data.writers.orientation import without_orientation
from groupdetr.data.writers.target import (
    ROUNDING,
    SourceImage,
    SourceSplit,
    Target,
    flat_names,
    with_boxes_inside,
    with_image_endings,
)
from groupdetr.errors import DataError
from groupdetr.structures.json_object import JsonObject


def write_yolo(splits: Sequence[SourceSplit], target: Target) -> None:
    """Write a YOLO dataset: of polygons if every object has one, else of boxes.

    Programs for YOLO turn images by their EXIF orientation. If the boxes are those of an image
    before that, its copy has no orientation.
    """
    splits = [with_image_endings(split, target) for split in splits]
    stored = _images_as_stored(splits)
    names = {number: item["name"] for number, item in enumerate(splits[0].categories)}
    # Without 'path', the folders are relative to data.yaml. Ultralytics would take a relative
    # 'path' as one of the folder that it is started in.
    description: JsonObject = {}
    objects = [a for split in splits for image in split.images for a in _objects(image)]
    as_polygons = bool(objects) and all(_polygons(annotation) for annotation in objects)
    if not as_polygons:
        with_mask = sum(bool(annotation.get("segmentation")) for annotation in objects)
        target.note("masks left out, because not every object has a polygon", with_mask)
    for split in splits:
        numbers = {item["id"]: number for number, item in enumerate(split.categories)}
        flat = flat_names(image.file_name for image in split.images)
        paths = []
        has_labels = False
        for image in target.progress(split.images, split.name):
            name = image.file_name.with_name(flat[image.file_name])
            if name.name != image.file_name.name:
                target.note("images renamed, because two would share one label file")
            path = PurePosixPath("images", split.name) / name
            paths.append(path)
            if image.path in stored:
                target.note("images without their EXIF orientation, which their boxes ignore")
                target.write_image(_without_orientation(image), path)
            else:
                target.copy_image(image.path, path)
            lines = _lines(image, numbers, as_polygons, target)
            if lines:  # an image without objects has no label file
                has_labels = True
                target.write_file(str(path_in_labels(path)), "\n".join(lines) + "\n")
        if not has_labels and split.name != "test":
            # Without any label file, the split would be read as one whose labels are missing.
            for path in paths:
                target.write_file(str(path_in_labels(path)), "")
        description[split.name] = f"images/{split.name}"
        if paths != sorted(paths):
            # A folder is read in the order of the names. A list keeps the order of the images.
            description[split.name] = f"{split.name}.txt"
            text = "".join(f"./{path}\n" for path in paths)
            target.write_file(f"{split.name}.txt", text)
    description["nc"] = len(names)
    description["names"] = names
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    target.write_file("data.yaml", text)


def _images_as_stored(splits: Sequence[SourceSplit]) -> set[Path]:
    """Return the images whose boxes are those of the image before its EXIF orientation turns it.

    `DataError` for one whose orientation cannot be removed: nothing is written then.
    """
    stored = set()
    for split in splits:
        for image in split.images:
            if is_turned(image.path, (image.width, image.height), image.upright) is False:
                _without_orientation(image)
                stored.add(image.path)
    return stored


def _without_orientation(image: SourceImage) -> bytes:
    """Return the file of an image without its EXIF orientation. `DataError` if it stays."""
    content = without_orientation(image.path)
    if content is None:
        raise DataError(
            "its boxes are those of the image before its EXIF orientation turns it, and the "
            "orientation cannot be removed from a file of this format",
            str(image.path),
            "save the image as JPEG or PNG without EXIF orientation",
        )
    return content


def _objects(image: SourceImage) -> list[JsonObject]:
    return [annotation for annotation in image.annotations if not annotation.get("iscrowd")]


def _polygons(annotation: JsonObject) -> list[list[float]]:
    """Return the polygons of an object of three points or more; none for run lengths."""
    value = annotation.get("segmentation")
    parts = (
        [parse_numbers(part) for part in value if type(part) is list] if type(value) is list else []
    )
    return [part for part in parts if part and len(part) >= 6 and len(part) % 2 == 0]


def _clipped_polygons(parts: list[list[float]], size: tuple[int, int]) -> list[list[float]]:
    """Return what lies in an image of ``size`` (W, H) of polygons x, y, x, y, ..."""
    clipped = []
    for part in parts:
        points = np.array(part, dtype=np.float64).reshape(-1, 2)
        if (points >= -ROUNDING).all() and (points <= np.array(size) + ROUNDING).all():
            clipped.append(part)
            continue
        for axis, side in enumerate(size):
            points = _clipped_below(points, axis, 0.0)
            points = side - _clipped_below(side - points, axis, 0.0)
        if len(points) >= 3:
            clipped.append(points.ravel().tolist())
    return clipped


def _clipped_below(points: Floats, axis: int, limit: float) -> Floats:
    """Return the part of a polygon [P,2] whose x (axis 0) or y (axis 1) is ``limit`` or more.

    The algorithm is that of Sutherland and Hodgman, "Reentrant Polygon Clipping", 1974.
    """
    result = []
    for start, end in zip(np.roll(points, 1, axis=0), points):
        is_inside = end[axis] >= limit
        if is_inside != (start[axis] >= limit):
            fraction = (limit - start[axis]) / (end[axis] - start[axis])
            crossing = start + fraction * (end - start)
            crossing[axis] = limit
            result.append(crossing)
        if is_inside:
            result.append(end)
    return np.array(result, dtype=np.float64).reshape(-1, 2)


def _lines(
    image: SourceImage, numbers: dict[object, int], as_polygons: bool, target: Target
) -> list[str]:
    """Return the lines of a label file."""
    objects = _objects(image)
    target.note("crowd regions left out", len(image.annotations) - len(objects))
    if not as_polygons:
        objects = with_boxes_inside(replace(image, annotations=objects), target).annotations
    lines = []
    size = (image.width, image.height)
    for annotation in objects:
        if as_polygons:
            recorded = _polygons(annotation)
            parts = _clipped_polygons(recorded, size)
            if not parts:
                target.note("masks left out, because they are outside of their image")
                continue
            if parts != recorded:
                target.note("masks clipped to their image")
            if len(parts) > 1:
                target.note("masks of several polygons, joined to one by lines without width")
            points = _join(parts)
            values = [value / size[index % 2] for index, value in enumerate(points)]
        else:
            x, y, width, height = annotation["bbox"]
            values = [
                (x + width / 2) / size[0],
                (y + height / 2) / size[1],
                width / size[0],
                height / size[1],
            ]
        number = numbers[annotation["category_id"]]
        lines.append(" ".join([str(number), *(_text(value) for value in values)]))
    return lines


def _join(parts: list[list[float]]) -> list[float]:
    """Return one polygon with the area of several: it goes to the first point of each and back."""
    joined = list(parts[0])
    for part in parts[1:]:
        # Back to the first point of all, out to the part, around it, and back.
        joined += [*parts[0][:2], *part, *part[:2], *parts[0][:2]]
    return joined


def _text(value: float) -> str:
    """Return a fraction with all its digits, and never with an exponent."""
    return f"{value:.17f}".rstrip("0").rstrip(".") or "0"
