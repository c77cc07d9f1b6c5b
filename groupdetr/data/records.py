"""The content of a dataset in memory: categories, one record for each image, and splits.

The module uses numpy only and does not depend on the file format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import index as as_index
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.formats import FindLocation
from groupdetr.data.packed_segmentations import PackedSegmentations
from groupdetr.data.segmentations import Segmentation
from groupdetr.structures.json_object import JsonObject

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
# Ids as numbers of 64 bits, or as Python objects if one of them is a text or missing.
Ids = NDArray[np.int64] | NDArray[np.object_]


@dataclass(frozen=True)
class Category:
    """A class with the id and the name that the dataset gives it."""

    id: int | str
    name: str
    # The name of the class that it belongs to, "" if none is recorded. It does not tell two
    # categories apart.
    supercategory: str = field(default="", compare=False)


class TrainingData(Protocol):
    """A dataset of images or of scenes that was read from disk."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes, in the order of their labels."""
        ...

    def metadata(self) -> JsonObject:
        """Return what a run records about its dataset."""
        ...

    def fingerprint(self) -> JsonObject:
        """Return the classes, and numbers and digests of images and objects (`fingerprint.py`)."""
        ...


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its T annotations as recorded, including crowds and boxes without area."""

    image_id: int | str
    path: Path
    file_name: str
    width: int  # pixels
    height: int
    boxes: Floats  # [T,4] x, y, width, height in pixels
    labels: Ints  # [T] index into the categories of the split
    areas: Floats  # [T] square pixels, as recorded: of the mask where there is one
    crowd: Bools  # [T]
    annotation_ids: tuple[int | str | None, ...]  # [T] as recorded, None where there is none
    segmentations: Sequence[Segmentation] | None = None  # [T] if the data is read with masks
    # Whether the boxes are those of the image after its EXIF orientation; False: the size tells.
    upright: bool = False

    def trainable_objects(self) -> tuple[Floats, Ints]:
        """Return boxes [T',4] as x0, y0, x1, y1 within the image and labels [T'].

        These are the objects that a detector is trained on.
        """
        trainable = self.trainable
        return self.corners[trainable], self.labels[trainable]

    @property
    def corners(self) -> Floats:
        """[T,4] boxes as x0, y0, x1, y1, clipped to the image."""
        return clip_boxes(self.boxes, np.array([[self.width, self.height]]))

    @property
    def trainable(self) -> Bools:
        """[T] bool, True for the objects that a detector is trained on.

        As in DETR, these are the objects that are not crowds and whose box has an area within the
        image.
        """
        corners = self.corners
        has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
        return np.asarray(~self.crowd & has_area, dtype=bool)

    def object_masks(self) -> tuple[Segmentation, ...] | None:
        """Return the T' segmentations of the trainable objects, None without masks."""
        if self.segmentations is None:
            return None
        rows = np.flatnonzero(self.trainable).tolist()
        return tuple(self.segmentations[row] for row in rows)


@dataclass(frozen=True, eq=False)
class PackedTexts:
    """N texts in one array."""

    ends: Ints  # [N+1] 0, then the index in ``content`` after each text
    content: NDArray[np.uint8]  # UTF-8

    @classmethod
    def pack(cls, texts: Iterable[str]) -> PackedTexts:
        """Return texts, packed."""
        # A name of a file may have bytes that are no UTF-8; Python keeps them as surrogates.
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        lengths = np.array([0, *map(len, encoded)], dtype=np.int64)
        return cls(lengths.cumsum(), np.frombuffer(b"".join(encoded), dtype=np.uint8))

    def __getitem__(self, row: int) -> str:
        first, end = self.ends[row : row + 2].tolist()
        return self.content[first:end].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True, eq=False)
class RecordTable:
    """I images and their A annotations, column by column.

    The annotations of an image are neighbours: those of image i are the rows from
    ``annotation_ends[i]`` to ``annotation_ends[i + 1]``, the last one excluded.
    """

    folder: Path  # of the images
    image_ids: Ids  # [I]
    file_names: PackedTexts  # [I]
    # [I] paths of the images; None if each is the name of its file in the folder
    paths: PackedTexts | None
    sizes: Ints  # [I,2] width and height in pixels
    annotation_ends: Ints  # [I+1]
    boxes: Floats  # [A,4]
    labels: Ints  # [A]
    areas: Floats  # [A]
    crowd: Bools  # [A]
    annotation_ids: Ids  # [A]
    segmentations: PackedSegmentations | None = None  # [A]
    upright: bool = False  # as in `Record`, for all images

    def record(self, row: int) -> Record:
        """Return one image. Its arrays are views of the columns."""
        first, end = self.annotation_ends[row : row + 2].tolist()
        width, height = self.sizes[row].tolist()
        name = self.file_names[row]
        path = Path(self.folder, name) if self.paths is None else Path(self.paths[row])
        return Record(
            self.image_ids[row : row + 1].tolist()[0],  # an int of Python, not of numpy
            path,
            name,
            width,
            height,
            self.boxes[first:end],
            self.labels[first:end],
            self.areas[first:end],
            self.crowd[first:end],
            tuple(self.annotation_ids[first:end].tolist()),
            None if self.segmentations is None else self.segmentations[first:end],
            self.upright,
        )


@dataclass(frozen=True, eq=False)
class PackedRecords(Sequence[Record]):
    """The records of some rows of a table. Each is made when it is used, and not kept.

    A million records as Python objects take gigabytes, and every worker process would get its own
    copy of them, because reading an object writes its number of references.
    """

    table: RecordTable
    rows: Ints  # [N]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> PackedRecords: ...

    def __getitem__(self, index: int | slice) -> Record | PackedRecords:
        if isinstance(index, slice):
            return PackedRecords(self.table, self.rows[index])
        return self.table.record(int(self.rows[as_index(index)]))

    def __iter__(self) -> Iterator[Record]:
        return map(self.table.record, self.rows.tolist())


@dataclass(frozen=True, eq=False)
class ObjectColumns:
    """The O trainable objects of I images, column by column, in the order of the images."""

    counts: Ints  # [I] objects of each image
    corners: Floats  # [O,4] x0, y0, x1, y1 within the image
    labels: Ints  # [O]
    crowds: int  # the number of crowds, which are no objects

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> ObjectColumns:
        """Return the objects of images, without a record of each if they are packed."""
        if isinstance(records, PackedRecords):
            return cls._from_table(records.table, records.rows)
        objects = [record.trainable_objects() for record in records]
        corners = [np.zeros((0, 4)), *(corners for corners, _ in objects)]
        labels = [np.zeros(0, dtype=np.int64), *(labels for _, labels in objects)]
        counts = np.array([len(labels) for _, labels in objects], dtype=np.int64)
        crowds = sum(int(record.crowd.sum()) for record in records)
        return cls(counts, np.concatenate(corners), np.concatenate(labels), crowds)

    @classmethod
    def _from_table(cls, table: RecordTable, rows: Ints) -> ObjectColumns:
        firsts = table.annotation_ends[rows]
        num_annotations = table.annotation_ends[rows + 1] - firsts
        image = np.repeat(np.arange(len(rows)), num_annotations)
        # The rows of the annotations of an image follow its first one.
        before = num_annotations.cumsum() - num_annotations
        index = np.arange(len(image)) + (firsts - before)[image]
        crowd = table.crowd[index]
        corners = clip_boxes(table.boxes[index], table.sizes[rows][image])
        trainable = ~crowd & (corners[:, 2:] > corners[:, :2]).all(axis=1)
        counts = np.bincount(image[trainable], minlength=len(rows))
        return cls(counts, corners[trainable], table.labels[index[trainable]], int(crowd.sum()))


def select_records(records: Sequence[Record], selected: Bools) -> Sequence[Record]:
    """Return the records for which ``selected`` [N] is True."""
    if isinstance(records, PackedRecords):
        return PackedRecords(records.table, records.rows[selected])
    return tuple(records[row] for row in np.flatnonzero(selected).tolist())


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """One split of a dataset."""

    name: str
    annotation_file: Path
    images_dir: Path
    categories: tuple[Category, ...]
    records: Sequence[Record]
    find_location: FindLocation | None = None  # of the records, for messages

    def __len__(self) -> int:
        return len(self.records)

    def with_categories(self, categories: tuple[Category, ...]) -> CocoSplit:
        """Return the same split with labels that index ``categories``.

        ``categories`` must have all categories of the split that have an annotation.
        """
        if categories == self.categories:
            return self
        new_label = {category.id: label for label, category in enumerate(categories)}
        new_labels = [new_label.get(category.id, -1) for category in self.categories]
        table = np.array(new_labels, dtype=np.int64)
        if isinstance(self.records, PackedRecords):
            columns = self.records.table
            packed = replace(columns, labels=_relabelled(columns.labels, table))
            return replace(
                self, categories=categories, records=PackedRecords(packed, self.records.rows)
            )
        records = [
            replace(record, labels=_relabelled(record.labels, table)) for record in self.records
        ]
        return replace(self, categories=categories, records=tuple(records))

    def used_categories(self) -> tuple[Category, ...]:
        """Return the categories that have an annotation, crowds included."""
        if not self.records:
            return ()
        if isinstance(self.records, PackedRecords) and self._is_whole_table(self.records):
            used = np.unique(self.records.table.labels)
        else:
            used = np.unique(np.concatenate([record.labels for record in self.records]))
        return tuple(self.categories[label] for label in used)

    def with_objects(self) -> CocoSplit:
        """Return the split without the images that have no trainable object.

        It is for detectors that are not trained on images that show only background.
        """
        has_objects = ObjectColumns.from_records(self.records).counts > 0
        return replace(self, records=select_records(self.records, has_objects))

    @staticmethod
    def _is_whole_table(records: PackedRecords) -> bool:
        return len(records) == len(records.table.sizes)


def _relabelled(labels: Ints, table: Ints) -> Ints:
    """Return ``table[labels]``. `ValueError` if the table has no label for one of them."""
    new_labels = table[labels]
    if (new_labels < 0).any():
        raise ValueError("a category that has annotations is missing")
    return new_labels


def clip_boxes(boxes: Floats, sizes: NDArray[np.generic]) -> Floats:
    """Return boxes [T,4] x, y, width, height as corners x0, y0, x1, y1, clipped to the images.

    ``sizes`` [T,2] or [1,2] are the width and height of the images.
    """
    top_left = np.clip(boxes[:, :2], 0, sizes)
    bottom_right = np.clip(boxes[:, :2] + boxes[:, 2:], 0, sizes)
    return np.concatenate([top_left, bottom_right], axis=1)
