"""The nouns of a data set on disk: categories, one record for each image, splits. Numpy only, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.segmentations import Shape

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Category:
    """A class as the data set writes it."""

    id: int | str
    name: str


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its T annotations, as recorded: crowds and boxes without area included."""

    image_id: int | str
    path: Path
    file_name: str
    width: int  # pixels
    height: int
    boxes: Floats  # [T,4] x, y, width, height in pixels
    labels: Ints  # [T] index into the split's categories
    areas: Floats  # [T] square pixels, as recorded: of the mask where there is one
    crowd: Bools  # [T]
    annotation_ids: tuple[int | str | None, ...]  # [T] as recorded, None where there is none
    shapes: tuple[Shape, ...] | None = None  # [T] where masks were asked for

    def training(self) -> tuple[Floats, Ints]:
        """The objects to learn: boxes [T',4] as x0, y0, x1, y1 within the image, and labels [T']."""
        learned = self.learned
        return self.corners[learned], self.labels[learned]

    @property
    def corners(self) -> Floats:
        """[T,4] x0, y0, x1, y1 within the image."""
        return clamped(self.boxes, np.array([[self.width, self.height]]))

    @property
    def learned(self) -> Bools:
        """[T] the objects to learn, DETR's rule: no crowds, and none whose box has no area within the image."""
        return np.asarray(
            ~self.crowd & (self.corners[:, 2:] > self.corners[:, :2]).all(1), dtype=bool
        )

    def outlines(self) -> tuple[Shape, ...] | None:
        """The shapes of the objects to learn [T'], where masks were asked for."""
        if self.shapes is None:
            return None
        return tuple(self.shapes[row] for row in np.flatnonzero(self.learned))


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """One split of a data set."""

    name: str
    annotation_file: Path
    images_dir: Path
    categories: tuple[Category, ...]
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def with_categories(self, categories: tuple[Category, ...]) -> CocoSplit:
        """The same split with labels that index ``categories``, of which its own must be a subset."""
        if categories == self.categories:
            return self
        index = {category.id: i for i, category in enumerate(categories)}
        table = np.array([index[category.id] for category in self.categories], dtype=np.int64)
        records = tuple(replace(record, labels=table[record.labels]) for record in self.records)
        return replace(self, categories=categories, records=records)

    def with_objects(self) -> CocoSplit:
        """Only the images with an object to learn: for detectors that are not trained on background alone."""
        return replace(
            self, records=tuple(record for record in self.records if record.learned.any())
        )


def clamped(boxes: Floats, sizes: NDArray[np.generic]) -> Floats:
    """Boxes [T,4] x, y, width, height as corners x0, y0, x1, y1 within images of sizes [T or 1, 2] width, height."""
    start = boxes[:, :2]
    return np.concatenate(
        [np.clip(start, 0, sizes), np.clip(start + boxes[:, 2:], 0, sizes)], axis=1
    )
