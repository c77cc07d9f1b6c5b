"""COCO files that need no explanation, read column by column in a fifth of the time.

`read_plain` accepts a file only if each of its records can be used and nothing has to be said
about any of them, except about where boxes and masks lie. For every other file it raises
`NotPlainError`, and `coco.py` reads the file from the beginning. So findings and their sentences
exist once, and a file gives the same records and findings in both ways
(tests/data/test_plain_coco.py).
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from operator import itemgetter
from pathlib import Path

import numpy as np

from groupdetr.data import box_rules, mask_rules
from groupdetr.data.annotations import (
    AnnotationTable,
    check_box_positions,
    check_mask_convention,
    read_segmentation,
)
from groupdetr.data.findings import Findings
from groupdetr.data.image_decoding import max_pixels
from groupdetr.data.json_pieces import JsonPieces, NotPlainError
from groupdetr.data.json_values import Id, parse_side
from groupdetr.data.packed_segmentations import PackedSegmentations, SegmentationPacker
from groupdetr.data.paths import ImageFolder, are_ordinary, is_unusual
from groupdetr.data.records import Bools, Floats, Ints
from groupdetr.structures.json_object import JsonObject

_INT = {int}
_FLAG = {int, float, bool, type(None)}


@dataclass(frozen=True)
class ImageColumns:
    """The I images of a file, column by column."""

    ids: list[Id]
    file_names: list[str]
    # None if every path is the name of the file in the folder of the images
    paths: list[str] | None
    sizes: Ints  # [I,2] width and height in pixels


def _expect(condition: object, what: str) -> None:
    if not condition:
        raise NotPlainError(what)


def _column(objects: Sequence[JsonObject], key: str) -> list[object]:
    """Return the values under ``key``, which every object must have."""
    try:
        return list(map(itemgetter(key), objects))
    except KeyError:
        raise NotPlainError(f"{key} is missing") from None


def _optional_column(objects: Sequence[JsonObject], key: str) -> list[object]:
    """Return the values under ``key``, None where there is none."""
    try:
        return list(map(itemgetter(key), objects))  # half the time of the next line
    except KeyError:
        return [item.get(key) for item in objects]


def _floats(values: list[float], what: str) -> Floats:
    """Return a list of numbers as an array. `NotPlainError` says ``what`` if one is no number.

    Neither numpy nor a look at the type of each value is as fast: this takes a fifth of their time.
    """
    try:
        column = np.frombuffer(struct.pack(f"{len(values)}d", *values), dtype=np.float64)
    except struct.error:
        raise NotPlainError(what) from None
    # Python takes false and true for the numbers 0 and 1.
    may_be_flags = np.flatnonzero((column == 0) | (column == 1)).tolist()
    _expect(not any(type(values[index]) is bool for index in may_be_flags), what)
    return column


def _id_column(objects: Sequence[JsonObject], key: str) -> list[int]:
    """Return the values under ``key``, which must be whole numbers."""
    values = _column(objects, key)
    _expect(set(map(type, values)) <= _INT, f"{key} is no whole number")
    return values  # type: ignore[return-value]


def _int64(numbers: list[int]) -> Ints:
    """Return whole numbers as an array, if all of them have at most 64 bits."""
    try:
        return np.frombuffer(array("q", numbers), dtype=np.int64)
    except OverflowError:
        raise NotPlainError("a number is too large") from None


# images


def plain_images(items: Sequence[object], folder: Path, findings: Findings) -> ImageColumns:
    """Return the images of a file. Links out of the folder are reported."""
    _expect(set(map(type, items)) == {dict}, "an image is no object")
    objects: Sequence[JsonObject] = items  # type: ignore[assignment]
    ids = _id_column(objects, "id")
    _int64(ids)  # none is too large
    _expect(len(set(ids)) == len(ids), "two images have the same id")
    names = _column(objects, "file_name")
    _expect(set(map(type, names)) == {str}, "a file name is no text")
    file_names: list[str] = names  # type: ignore[assignment]
    paths = _paths(ids, file_names, folder, findings)
    # On Windows, upper and lower case are the same.
    distinct = set(map(os.path.normcase, file_names if paths is None else paths))
    _expect(len(distinct) == len(ids), "two images are the same file")
    columns = [_column(objects, key) for key in ("width", "height")]
    _expect(set(map(type, chain(*columns))) <= _INT, "a size is no whole number")
    distinct_sides = set(chain(*columns))
    _expect(all(parse_side(side) is not None for side in distinct_sides), "a size is out of range")
    sizes = np.array(columns, dtype=np.int64).T.copy()
    _expect(not (sizes.prod(axis=1) > max_pixels()).any(), "an image is too large")
    return ImageColumns(list(ids), file_names, paths, sizes)


def _paths(
    ids: Sequence[int], file_names: Sequence[str], folder: Path, findings: Findings
) -> list[str] | None:
    """Return the paths of images; None if all are the names of files in the folder."""
    has_links = may_have_links(folder)
    if not has_links and are_ordinary(file_names):
        return None
    image_folder = ImageFolder(folder)
    prefix = str(folder / "x")[:-1]
    paths = []
    is_plain = True
    for image_id, name in zip(ids, file_names):
        path = prefix + name
        # Only names with folders, unusual names and links have rules of their own.
        if "/" in name or is_unusual(name) or (has_links and os.path.islink(path)):
            path_in_folder = image_folder.locate(name, f"image {image_id}", findings)
            _expect(path_in_folder is not None, "a file name is refused")
            path = str(path_in_folder)
            is_plain = False
        paths.append(path)
    return None if is_plain else paths


def may_have_links(folder: Path) -> bool:
    """Return whether a folder has links. A file is asked only then: that is one call for each."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.is_symlink() for entry in entries)
    except FileNotFoundError:
        return False
    except OSError:  # it cannot be listed
        return True


# annotations


class PlainAnnotations:
    """Collects the annotations of a file, one piece after the other."""

    def __init__(self) -> None:
        self._ids: list[Ints] = []
        self._image_ids: list[Ints] = []
        self._category_ids: list[Ints] = []
        self._boxes: list[Floats] = []
        self._areas: list[Floats] = []
        self._crowd: list[Bools] = []

    def add(self, items: list[JsonObject]) -> None:
        """Add the annotations of a piece."""
        for columns, key in (
            (self._ids, "id"),
            (self._image_ids, "image_id"),
            (self._category_ids, "category_id"),
        ):
            columns.append(_int64(_id_column(items, key)))
        boxes = _boxes(items)
        self._boxes.append(boxes)
        self._areas.append(_areas(items, boxes))
        self._crowd.append(_crowd(items))

    def table(self, images: dict[Id, int], labels: dict[Id, int]) -> AnnotationTable:
        """Return all annotations. ``images`` maps ids to rows, ``labels`` ids to labels."""
        ids = np.concatenate(self._ids)
        _expect(ids.all(), "an id is 0")
        _expect((np.diff(np.sort(ids)) > 0).all(), "two annotations have the same id")
        return AnnotationTable(
            ids,
            _indices(np.concatenate(self._image_ids), images),
            _indices(np.concatenate(self._category_ids), labels),
            np.concatenate(self._boxes),
            np.concatenate(self._areas),
            np.concatenate(self._crowd),
        )


def _indices(ids: Ints, index: dict[Id, int]) -> Ints:
    """Return what ``index`` has for each id. All of them must be there."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    found = np.array([index.get(value, -1) for value in distinct.tolist()], dtype=np.int64)
    _expect((found >= 0).all(), "an image or a category is unknown")
    return found[inverse]


def _boxes(items: Sequence[JsonObject]) -> Floats:
    """Return the boxes [A,4] of a piece."""
    values = _column(items, "bbox")
    _expect(set(map(type, values)) == {list}, "a box is no list")
    boxes: list[list[float]] = values  # type: ignore[assignment]
    _expect(set(map(len, boxes)) == {4}, "a box has not four numbers")
    numbers = list(chain.from_iterable(boxes))
    column = _floats(numbers, "a box has a value that is no number").reshape(-1, 4)
    _expect(not np.any(list(box_rules.unusable(column).values())), "a box cannot be used")
    return column


def _areas(items: Sequence[JsonObject], boxes: Floats) -> Floats:
    """Return the areas [A] of a piece: as recorded, or of the box where none is."""
    values = _optional_column(items, "area")
    is_missing = np.zeros(len(values), dtype=bool)
    if None in values:
        is_missing = np.array([value is None for value in values], dtype=bool)
        values = [np.nan if value is None else value for value in values]
    areas = _floats(values, "an area is no number")  # type: ignore[arg-type]
    is_usable = np.isfinite(areas) & (areas >= 0)
    _expect((is_usable | is_missing).all(), "an area cannot be used")
    return np.where(is_missing, boxes[:, 2] * boxes[:, 3], areas)


def _crowd(items: Sequence[JsonObject]) -> Bools:
    """Return which annotations of a piece are crowds, [A] bool."""
    values = _optional_column(items, "iscrowd")
    _expect(set(map(type, values)) <= _FLAG, "iscrowd is no number")
    _expect(set(values) <= {0, 1, None}, "iscrowd is neither 0 nor 1")
    return np.array(list(map(bool, values)), dtype=bool)


# masks


class PlainMasks:
    """Collects the segmentations of a file, one piece after the other."""

    def __init__(self) -> None:
        self._packer = SegmentationPacker()
        self._rows: list[Ints] = []  # of the annotations, in the order of the packer
        self._extents: list[Floats] = []  # [T,4] of the polygons: smallest x, y, largest x, y
        self._others: dict[int, JsonObject] = {}  # row -> an annotation that has no plain polygon
        self._count = 0

    def add(self, items: list[JsonObject]) -> None:
        """Add the segmentations of a piece. `table` reads those that are no plain polygons."""
        values = _optional_column(items, "segmentation")
        polygons: list[list[list[float]]] = values  # type: ignore[assignment]
        is_polygon = np.ones(len(values), dtype=bool)
        if set(map(type, values)) != {list} or not all(values):
            is_polygon = np.array([type(v) is list and bool(v) for v in values], dtype=bool)
            polygons = list(compress(polygons, is_polygon))
        _expect(set(map(type, chain.from_iterable(polygons))) <= {list}, "a part is no list")
        num_parts = np.array(list(map(len, polygons)), dtype=np.int64)
        lengths = np.array(list(map(len, chain.from_iterable(polygons))), dtype=np.int64)
        is_odd_part = (lengths % 2 != 0) | (lengths < 6)
        if is_odd_part.any():
            owners = np.repeat(np.flatnonzero(is_polygon), num_parts)
            is_polygon[owners[is_odd_part]] = False
            polygons = list(compress(values, is_polygon))  # type: ignore[arg-type]
            num_parts = np.array(list(map(len, polygons)), dtype=np.int64)
            lengths = np.array(list(map(len, chain.from_iterable(polygons))), dtype=np.int64)
        if polygons:
            numbers = list(chain.from_iterable(chain.from_iterable(polygons)))
            coordinates = _floats(numbers, "a coordinate is no number")
            self._packer.add_polygons(num_parts, lengths, coordinates)
            # The index of the first point of each polygon.
            ends = lengths.cumsum()[num_parts.cumsum() - 1] // 2
            starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
            points = coordinates.reshape(-1, 2)
            low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
            self._extents.append(np.concatenate([low, high], axis=1))
            self._rows.append(self._count + np.flatnonzero(is_polygon))
        for row in np.flatnonzero(~is_polygon).tolist():
            self._others[self._count + row] = items[row]
        self._count += len(items)

    def packed(
        self, table: AnnotationTable, sizes: Floats, findings: Findings
    ) -> PackedSegmentations:
        """Return the segmentations of all annotations, in images of ``sizes`` [A,2]."""
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *self._rows])
        extents = np.concatenate([np.zeros((0, 4)), *self._extents])
        in_reach = mask_rules.within_reach(extents[:, :2], extents[:, 2:], sizes[rows])
        _expect(in_reach.all(), "a polygon is far outside")
        for row, item in self._others.items():
            before = len(findings)
            segmentation = read_segmentation(
                item, bool(table.crowd[row]), table.boxes[row], sizes[row], findings
            )
            if segmentation is None:
                raise NotPlainError("a segmentation cannot be used")
            if len(findings) > before:
                _expect_exact_numbers(item.get("segmentation"))
            self._packer.add(segmentation)
        order = np.concatenate([rows, np.array(list(self._others), dtype=np.int64)])
        # `order` is a permutation: its inverse puts the segmentations into the order of the file.
        return self._packer.packed().rows(np.argsort(order))


def _expect_exact_numbers(polygons: object) -> None:
    """Raise `NotPlainError` if a sentence would show a number that the parser has rounded."""
    if isinstance(polygons, list):
        numbers = chain.from_iterable(polygons)
        _expect(all(abs(number) < 2**53 for number in numbers), "a number is too large")


# the file


@dataclass(frozen=True)
class PlainContent:
    """What a plain file holds."""

    categories: list[object]
    images: ImageColumns
    pieces: JsonPieces
    annotations: PlainAnnotations
    masks: PlainMasks | None


def read_plain(raw: bytes, folder: Path, findings: Findings, masks: bool) -> PlainContent:
    """Return the content of a COCO file. `NotPlainError` if it is not plain.

    ``folder`` is that of the images. ``findings`` receives what is worth saying about them.
    """
    pieces = JsonPieces(raw, "annotations")
    annotations = PlainAnnotations()
    plain_masks = PlainMasks() if masks else None
    for items in pieces.pieces():
        annotations.add(items)
        if plain_masks is not None:
            plain_masks.add(items)
    rest = pieces.rest()
    categories, images = rest.get("categories"), rest.get("images")
    if not (isinstance(categories, list) and isinstance(images, list) and categories and images):
        raise NotPlainError("a list is missing or empty")
    columns = plain_images(images, folder, findings)
    return PlainContent(categories, columns, pieces, annotations, plain_masks)


def plain_table(
    content: PlainContent, labels: dict[Id, int], findings: Findings
) -> AnnotationTable:
    """Return the annotations of a plain file, and add findings about their boxes and masks.

    ``labels`` maps ids of categories to labels.
    """
    images = {image_id: row for row, image_id in enumerate(content.images.ids)}
    table = content.annotations.table(images, labels)
    sizes = content.images.sizes.astype(np.float64)[table.image]
    check_box_positions(content.pieces.rows(), table, sizes, findings)
    if content.masks is None:
        return table
    segmentations = content.masks.packed(table, sizes, findings)
    check_mask_convention(segmentations, sizes, findings)
    return replace(table, segmentations=segmentations)
