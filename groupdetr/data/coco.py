"""COCO JSON files: valid entries become records, invalid ones become findings.

`parse` never raises on bad data; ``groupdetr check`` uses it. `read_split` raises the first error
that `parse` finds. So every rule exists once, and both agree on what is valid.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from groupdetr.data.annotation_cache import cached
from groupdetr.data.annotations import REFUSED, AnnotationTable, id_column, read_annotations
from groupdetr.data.findings import Findings, RefusedError, printable, raise_first_error
from groupdetr.data.formats import SplitAnnotations
from groupdetr.data.freed_memory import trim_malloc
from groupdetr.data.image_decoding import image_size, max_pixels
from groupdetr.data.json_file import parse_object, read_bytes
from groupdetr.data.json_pieces import NotPlainError
from groupdetr.data.json_values import Id, parse_id, parse_side, report_id_types
from groupdetr.data.paths import ImageFolder
from groupdetr.data.plain_coco import ImageColumns, plain_table, read_plain
from groupdetr.data.records import (
    Category,
    CocoSplit,
    PackedRecords,
    PackedTexts,
    RecordTable,
)
from groupdetr.structures.json_object import JsonObject

MANY_IMAGES = 1000  # Below, what glibc keeps of the memory for reading them is little.


def read_split(
    annotation_file: Path | str,
    images_dir: Path | str,
    name: str,
    masks: bool = False,
    cache: bool = False,
) -> CocoSplit:
    """Read one split without decoding its images. ``masks`` and ``cache`` as in `parse`.

    Raises `DataError` for the first problem that would mislead training.
    """
    split, findings = parse(Path(annotation_file), Path(images_dir), name, masks, cache=cache)
    raise_first_error(findings)
    return split


def parse(
    annotation_file: Path,
    images_dir: Path,
    name: str,
    masks: bool = False,
    needs_annotations: bool = True,
    cache: bool = False,
) -> tuple[CocoSplit, Findings]:
    """Return the valid part of one split, and all findings about its annotation file.

    With ``masks``, segmentations are read and must exist. Without ``needs_annotations``, a file
    may have no key 'annotations', as that of COCO's test-dev: its images have no objects then.
    With ``cache``, a large file that was read before is read from the cache folder
    (`annotation_cache.py`).
    """

    def read() -> tuple[CocoSplit, Findings]:
        result = _read(annotation_file, images_dir, name, masks, needs_annotations)
        if len(result[0].records) >= MANY_IMAGES:
            # The bytes of the file and the objects of the parser are free now, but glibc would keep
            # more memory for itself than the records take.
            trim_malloc()
        return result

    return cached(annotation_file, images_dir, name, masks, read) if cache else read()


def _read(
    annotation_file: Path, images_dir: Path, name: str, masks: bool, needs_annotations: bool
) -> tuple[CocoSplit, Findings]:
    """Return the same as `parse`, from the annotation file."""
    with _garbage_collector_paused():
        findings = Findings(annotation_file)
        raw = read_bytes(annotation_file, findings)
        if raw is not None:
            with suppress(NotPlainError):
                return _parse_plain(raw, annotation_file, images_dir, name, masks)
        content = None if raw is None else parse_object(raw, findings)
        if content is not None and not needs_annotations:
            content.setdefault("annotations", [])
        return _parse(content, findings, annotation_file, images_dir, name, masks)


def parse_content(
    annotations: SplitAnnotations, name: str, masks: bool = False
) -> tuple[CocoSplit, Findings]:
    """Return the same as `parse` for COCO annotations that another format was translated to."""
    file = annotations.file
    findings = Findings(file)
    findings += annotations.findings
    with _garbage_collector_paused():
        split, _ = _parse(
            annotations.content,
            findings,
            file,
            annotations.images,
            name,
            masks,
            annotations.upright,
        )
    return replace(split, find_location=annotations.find_location), findings


@contextmanager
def _garbage_collector_paused() -> Iterator[None]:
    """Pause the garbage collector while millions of objects are created.

    There are no cycles among them, and searching for cycles would take 40 % of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _parse(
    content: JsonObject | None,
    findings: Findings,
    annotation_file: Path,
    images_dir: Path,
    name: str,
    masks: bool,
    upright: bool = False,
) -> tuple[CocoSplit, Findings]:
    category_items = _list(content, "categories", findings)
    image_items = _list(content, "images", findings)
    annotation_items = _list(content, "annotations", findings)

    categories, labels = _categories(category_items, findings)
    images, index = _images(image_items, ImageFolder(images_dir), findings)
    sizes = np.array([image.size for image in images], dtype=np.int64).reshape(-1, 2)
    table = read_annotations(
        annotation_items, sizes.astype(np.float64), index, labels, findings, masks
    )
    _check_category_names(categories, table, findings)
    columns = ImageColumns(
        [image.image_id for image in images],
        [image.file_name for image in images],
        [str(image.path) for image in images],
        sizes,
    )
    records = _records(columns, images_dir, table, upright)
    return CocoSplit(name, annotation_file, images_dir, categories, records), findings


def _parse_plain(
    raw: bytes, annotation_file: Path, images_dir: Path, name: str, masks: bool
) -> tuple[CocoSplit, Findings]:
    """Return the same as `_parse` for a file that `plain_coco` accepts, else `NotPlainError`."""
    findings = Findings(annotation_file)
    content = read_plain(raw, images_dir, findings, masks)
    findings_of_categories = Findings(annotation_file)
    categories, labels = _categories(content.categories, findings_of_categories)
    if findings_of_categories:
        raise NotPlainError("there is something to say about a category")
    table = plain_table(content, labels, findings)
    _check_category_names(categories, table, findings)
    records = _records(content.images, images_dir, table)
    return CocoSplit(name, annotation_file, images_dir, categories, records), findings


def _list(content: JsonObject | None, key: str, findings: Findings) -> list[object]:
    """Return the list under ``key``. If it is missing or empty, add a finding."""
    if content is None:  # reported already
        return []
    value = content.get(key)
    if not isinstance(value, list):
        problem = "missing" if value is None else "not a list"
        findings.add("json-not-coco", "", f"'{key}' is {problem}")
        return []
    if not value and key != "annotations":
        findings.add(f"no-{key}", "", f"'{key}' is empty")
    return value


def _objects_with_id(
    items: list[object], kind: str, findings: Findings
) -> Iterator[tuple[Id, JsonObject]]:
    """Yield images or categories that have an id, with their ids. Add findings for the others."""
    for position, item in enumerate(items):
        if isinstance(item, dict):
            item_id = parse_id(item.get("id"))
            if item_id is not None:
                yield item_id, item
                continue
            what = f"its id is {printable(item.get('id'))}"
        else:
            what = f"it is {printable(item)}, not an object"
        findings.add(f"bad-{kind}", f"{kind} number {position + 1}", what)


def _ids(items: list[object]) -> list[object]:
    return [item.get("id") for item in items if isinstance(item, dict)]


# categories


def _categories(
    items: list[object], findings: Findings
) -> tuple[tuple[Category, ...], dict[Id, int]]:
    """Return the categories, and a map from ids to labels.

    Categories are in the order of their ids, numbers before texts.
    """
    labels: dict[Id, int] = {}
    names: dict[Id, object] = {}
    categories: list[Category] = []
    for category_id, item in _objects_with_id(items, "category", findings):
        record = f"category {printable(category_id)}"
        name = item.get("name")
        if category_id in labels:
            first_name = printable(names[category_id])
            what = f"{first_name} and {printable(name)} have the same id"
            findings.add("duplicate-category-id", record, what)
        elif isinstance(name, str) and name.strip():
            parent = item.get("supercategory")
            parent = parent if isinstance(parent, str) else ""
            categories.append(Category(category_id, name, parent))
        else:
            findings.add("bad-category", record, f"its name is {printable(name)}")
        labels[category_id] = REFUSED
        names.setdefault(category_id, name)
    report_id_types(_ids(items), "category", findings)
    categories.sort(key=lambda category: (isinstance(category.id, str), category.id))
    for label, category in enumerate(categories):
        labels[category.id] = label
    return tuple(categories), labels


def _check_category_names(
    categories: tuple[Category, ...], table: AnnotationTable, findings: Findings
) -> None:
    """Check for categories with the same name.

    They are harmless if only one of them has boxes, as in exports that add an empty parent class.
    """
    num_boxes = np.bincount(table.label, minlength=len(categories))
    labels_by_name: dict[str, list[int]] = {}
    for label, category in enumerate(categories):
        labels_by_name.setdefault(category.name, []).append(label)
    for name, labels in labels_by_name.items():
        if len(labels) == 1:
            continue
        several_have_boxes = (num_boxes[labels] > 0).sum() > 1
        code = "ambiguous-category-name" if several_have_boxes else "duplicate-category-name"
        ids = ", ".join(printable(categories[label].id) for label in labels)
        findings.add(code, f"categories {ids}", f"they have the same name, {printable(name)}")


# images


@dataclass(frozen=True)
class _Image:
    image_id: Id
    path: Path
    file_name: str
    size: tuple[int, int]  # width, height


def _images(
    items: list[object], folder: ImageFolder, findings: Findings
) -> tuple[list[_Image], dict[Id, int]]:
    """Return the images that can be used, and a map from ids to their index."""
    images: list[_Image] = []
    index: dict[Id, int] = {}
    names: dict[Id, object] = {}
    for image_id, item in _objects_with_id(items, "image", findings):
        first_name = names.setdefault(image_id, item.get("file_name"))
        if image_id in index:
            name = printable(item.get("file_name"))
            what = f"{printable(first_name)} and {name} have the same id"
            findings.add("duplicate-image-id", f"image {printable(image_id)}", what)
        elif image := _image(image_id, item, folder, findings):
            index[image_id] = len(images)
            images.append(image)
        else:
            index[image_id] = REFUSED
    report_id_types(_ids(items), "image", findings)
    _check_duplicate_files(images, findings)
    return images, index


def _image(
    image_id: Id, item: JsonObject, folder: ImageFolder, findings: Findings
) -> _Image | None:
    record = f"image {printable(image_id)}"
    name = item.get("file_name")
    if not isinstance(name, str):
        findings.add("bad-image", record, f"its file_name is {printable(name)}")
        return None
    path = folder.locate(name, record, findings)
    if path is None:
        return None
    size = _size(item, path, record, findings)
    return _Image(image_id, path, name, size) if size else None


def _size(item: JsonObject, path: Path, record: str, findings: Findings) -> tuple[int, int] | None:
    """Return the recorded (width, height), or that of the image file if one is not recorded."""
    recorded_width, recorded_height = item.get("width"), item.get("height")
    width: int | None
    height: int | None
    if recorded_width is None or recorded_height is None:
        try:
            width, height = image_size(path)
        except RefusedError as error:
            findings.append(replace(error.finding, record=record))
            return None
    else:
        width, height = parse_side(recorded_width), parse_side(recorded_height)
    if width is None or height is None:
        recorded = f"{printable(recorded_width)} and {printable(recorded_height)}"
        findings.add("bad-size", record, f"its width and height are {recorded}")
        return None
    if width * height > max_pixels():
        what = f"it has {width} x {height} pixels, more than {max_pixels():,}"
        findings.add("image-too-large", record, what)
        return None
    return width, height


def _check_duplicate_files(images: list[_Image], findings: Findings) -> None:
    first_ids: dict[Path, Id] = {}
    for image in images:
        first_id = first_ids.setdefault(image.path, image.image_id)
        if first_id != image.image_id:
            name = printable(image.file_name)
            what = f"image {printable(first_id)} is the same file, {name}"
            findings.add("duplicate-file-name", f"image {printable(image.image_id)}", what)


def _records(
    images: ImageColumns, folder: Path, table: AnnotationTable, upright: bool = False
) -> PackedRecords:
    """Return one record for each image, with its annotations in the order of the file."""
    if (np.diff(table.image) < 0).any():
        # After sorting by image, the annotations of an image are neighbours. The sort is stable.
        table = table.rows(np.argsort(table.image, kind="stable"))
    rows = np.arange(len(images.ids))
    columns = RecordTable(
        folder,
        id_column(images.ids),
        PackedTexts.pack(images.file_names),
        None if images.paths is None else PackedTexts.pack(images.paths),
        images.sizes,
        np.searchsorted(table.image, np.arange(len(rows) + 1)),
        table.boxes,
        table.label,
        table.areas,
        table.crowd,
        table.ids,
        table.segmentations,
        upright,
    )
    return PackedRecords(columns, rows)
