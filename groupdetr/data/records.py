"""The content of a dataset in memory: categories, one record for each image, and splits.

The module uses numpy only and does not depend on the file format.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.formats import FindLocation
from groupdetr.data.segmentations import Segmentation
from groupdetr.structures.json_object import JsonObject

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
    segmentations: tuple[Segmentation, ...] | None = None  # [T] if the data is read with masks

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
        return tuple(self.segmentations[row] for row in np.flatnonzero(self.trainable))


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """One split of a dataset."""

    name: str
    annotation_file: Path
    images_dir: Path
    categories: tuple[Category, ...]
    records: tuple[Record, ...]
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
        records = []
        for record in self.records:
            labels = table[record.labels]
            if (labels < 0).any():
                raise ValueError("a category that has annotations is missing")
            records.append(replace(record, labels=labels))
        return replace(self, categories=categories, records=tuple(records))

    def used_categories(self) -> tuple[Category, ...]:
        """Return the categories that have an annotation, crowds included."""
        if not self.records:
            return ()
        used = np.unique(np.concatenate([record.labels for record in self.records]))
        return tuple(self.categories[label] for label in used)

    def with_objects(self) -> CocoSplit:
        """Return the split without the images that have no trainable object.

        It is for detectors that are not trained on images that show only background.
        """
        records = tuple(record for record in self.records if record.trainable.any())
        return replace(self, records=records)


def clip_boxes(boxes: Floats, sizes: NDArray[np.generic]) -> Floats:
    """Return boxes [T,4] x, y, width, height as corners x0, y0, x1, y1, clipped to the images.

    ``sizes`` [T,2] or [1,2] are the width and height of the images.
    """
    top_left = np.clip(boxes[:, :2], 0, sizes)
    bottom_right = np.clip(boxes[:, :2] + boxes[:, 2:], 0, sizes)
    return np.concatenate([top_left, bottom_right], axis=1)
