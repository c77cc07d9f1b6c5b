"""COCO JSON, read with patience: whatever is sound becomes records, whatever is not becomes findings.

``parse`` never raises on bad data and is what ``check`` sees; ``read_split`` is the same with the first error raised.
So there is one place that knows each rule, and what passes the one passes the other.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from groupdetr.data.annotations import REFUSED, Table, read_annotations
from groupdetr.data.findings import Findings, RefusedError, raise_first_error, shown
from groupdetr.data.images import image_size
from groupdetr.data.jsonfile import read_object
from groupdetr.data.paths import ImageFolder
from groupdetr.data.records import Category, CocoSplit, Record
from groupdetr.data.values import Id, identity, note_types, side

__all__ = ["Category", "CocoSplit", "Record", "parse", "read_split", "split_holdout"]


def read_split(
    annotation_file: Path | str, images_dir: Path | str, name: str, masks: bool = False
) -> CocoSplit:
    """One split, without looking into the pictures; DataError for the first thing that would mislead training."""
    split, found = parse(Path(annotation_file), Path(images_dir), name, masks)
    raise_first_error(found)
    return split


def split_holdout(split: CocoSplit, fraction: float, seed: int) -> tuple[CocoSplit, CocoSplit]:
    """(train, val): ``fraction`` of the images, at least one, held out; the same ones for the same seed."""
    total = len(split.records)
    held = min(max(1, round(fraction * total)), max(total - 1, 0))
    is_val = np.isin(np.arange(total), np.random.default_rng(seed).permutation(total)[:held])
    train = tuple(record for record, val in zip(split.records, is_val) if not val)
    val = tuple(record for record, val in zip(split.records, is_val) if val)
    return replace(split, name="train", records=train), replace(split, name="val", records=val)


def parse(
    annotation_file: Path, images_dir: Path, name: str, masks: bool = False
) -> tuple[CocoSplit, Findings]:
    """The sound part of one split, and all that is wrong with its annotation file. Segmentations are read, and have to
    be there, if ``masks`` are asked for."""
    with _collector_paused():
        return _parse(annotation_file, images_dir, name, masks)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of objects without a cycle among them: looking for cycles would take 40 % of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse(
    annotation_file: Path, images_dir: Path, name: str, masks: bool
) -> tuple[CocoSplit, Findings]:
    found = Findings(annotation_file)
    content = read_object(annotation_file, found)
    lists = {key: _list(content, key, found) for key in ("categories", "images", "annotations")}
    categories, labels = _categories(lists["categories"], found)
    images, index = _images(lists["images"], ImageFolder(images_dir), found)
    sizes = np.array([image.size for image in images], dtype=np.float64).reshape(-1, 2)
    table = read_annotations(lists["annotations"], sizes, index, labels, found, masks)
    _check_names(categories, table, found)
    return CocoSplit(name, annotation_file, images_dir, categories, _records(images, table)), found


def _list(content: dict[str, Any] | None, key: str, found: Findings) -> list[Any]:
    if content is None:  # reported already
        return []
    value = content.get(key)
    if not isinstance(value, list):
        found.add("json-not-coco", "", f"'{key}' is {'missing' if value is None else 'not a list'}")
        return []
    if not value and key != "annotations":
        found.add(f"no-{key}", "", f"'{key}' is empty")
    return value


# categories


def _categories(items: list[Any], found: Findings) -> tuple[tuple[Category, ...], dict[Id, int]]:
    """The categories in the order of their ids, numbers before texts, and id -> label."""
    labels: dict[Id, int] = {}
    categories: list[Category] = []
    for position, item in enumerate(items):
        key = _key(item, "category", position, found)
        if key is None:
            continue
        if key in labels:
            found.add(
                "duplicate-category-id",
                f"category {shown(key)}",
                "another category has the same id",
            )
        elif isinstance(name := item.get("name"), str) and name.strip():
            categories.append(Category(key, name))
        else:
            found.add("bad-category", f"category {shown(key)}", f"its name is {shown(name)}")
        labels[key] = REFUSED
    note_types([item.get("id") for item in items if isinstance(item, dict)], "category", found)
    categories.sort(key=lambda category: (isinstance(category.id, str), category.id))
    return tuple(categories), labels | {
        category.id: label for label, category in enumerate(categories)
    }


def _key(item: Any, kind: str, position: int, found: Findings) -> Id | None:
    """The id of an image or a category; None, and a finding, where there is none."""
    key = identity(item.get("id")) if isinstance(item, dict) else None
    if key is None:
        what = (
            f"its id is {shown(item.get('id'))}"
            if isinstance(item, dict)
            else f"it is {shown(item)}, not an object"
        )
        found.add(f"bad-{kind}", f"{kind} number {position + 1}", what)
    return key


def _check_names(categories: tuple[Category, ...], table: Table, found: Findings) -> None:
    """Categories of one name: harmless while one alone has boxes, as in exports that add an empty parent class."""
    counts = np.bincount(table.label, minlength=len(categories))
    labels: dict[str, list[int]] = {}
    for label, category in enumerate(categories):
        labels.setdefault(category.name, []).append(label)
    for name, same in labels.items():
        if len(same) > 1:
            code = (
                "ambiguous-category-name"
                if (counts[same] > 0).sum() > 1
                else "duplicate-category-name"
            )
            ids = ", ".join(shown(categories[label].id) for label in same)
            found.add(code, f"categories {ids}", f"they have the same name, {shown(name)}")


# images


@dataclass(frozen=True)
class _Image:
    image_id: Id
    path: Path
    file_name: str
    size: tuple[int, int]  # width, height


def _images(
    items: list[Any], folder: ImageFolder, found: Findings
) -> tuple[list[_Image], dict[Id, int]]:
    """The images that can be used, and id -> index into them."""
    images: list[_Image] = []
    index: dict[Id, int] = {}
    for position, item in enumerate(items):
        key = _key(item, "image", position, found)
        if key is None:
            continue
        if key in index:
            found.add("duplicate-image-id", f"image {shown(key)}", "another image has the same id")
        elif image := _image(key, item, folder, found):
            index[key] = len(images)
            images.append(image)
        else:
            index[key] = REFUSED
    note_types([item.get("id") for item in items if isinstance(item, dict)], "image", found)
    _check_files(images, found)
    return images, index


def _image(key: Id, item: dict[str, Any], folder: ImageFolder, found: Findings) -> _Image | None:
    record, name = f"image {shown(key)}", item.get("file_name")
    if not isinstance(name, str):
        found.add("bad-image", record, f"its file_name is {shown(name)}")
        return None
    path = folder.locate(name, record, found)
    size = _size(item, path, record, found) if path else None
    return _Image(key, path, name, size) if path and size else None


def _size(item: dict[str, Any], path: Path, record: str, found: Findings) -> tuple[int, int] | None:
    """The recorded (width, height), or the picture's own where one is not recorded."""
    recorded = item.get("width"), item.get("height")
    try:
        sides = image_size(path) if None in recorded else (side(recorded[0]), side(recorded[1]))
    except RefusedError as error:
        found.append(replace(error.finding, record=record))
        return None
    if sides[0] is None or sides[1] is None:
        found.add(
            "bad-size",
            record,
            f"its width and height are {shown(recorded[0])} and {shown(recorded[1])}",
        )
        return None
    return sides[0], sides[1]


def _check_files(images: list[_Image], found: Findings) -> None:
    owners: dict[Path, Id] = {}
    for image in images:
        if (owner := owners.setdefault(image.path, image.image_id)) != image.image_id:
            what = f"image {shown(owner)} is the same file, {shown(image.file_name)}"
            found.add("duplicate-file-name", f"image {shown(image.image_id)}", what)


def _records(images: list[_Image], table: Table) -> tuple[Record, ...]:
    """The annotations dealt out to their images."""
    table = table.rows(np.argsort(table.image, kind="stable"))
    ends = np.searchsorted(table.image, np.arange(len(images)), side="right").tolist()
    records = []
    for image, start, end in zip(images, [0, *ends], ends):
        its = table.rows(slice(start, end))
        about = (image.image_id, image.path, image.file_name, *image.size)
        records.append(
            Record(*about, its.boxes, its.label, its.areas, its.crowd, tuple(its.ids), its.shapes)
        )
    return tuple(records)
