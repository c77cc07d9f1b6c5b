"""A training image with its objects, before and between the steps of augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Generator

from groupdetr.data.image_transform import ImageTransform
from groupdetr.data.records import Ints
from groupdetr.data.segmentations import CroppedMask, Segmentation
from groupdetr.data.transforms import AugmentedImage

Window = tuple[float, float, float, float]  # left, top, right and bottom in pixels


@dataclass(frozen=True)
class PlacedSegmentation:
    """The segmentation of an object, and where its image lies in a larger one, as in a mosaic."""

    segmentation: Segmentation
    into_larger: ImageTransform = field(
        default_factory=ImageTransform
    )  # from the image on disk to the larger one
    window: Window | None = None  # of the larger image, outside of which the mask is empty

    def rasterise(self, transform: ImageTransform, size: tuple[int, int]) -> CroppedMask:
        """Return the mask after ``transform`` of the larger image, in one of ``size`` (H, W)."""
        whole = self.into_larger.followed_by(transform.scale, transform.shift)
        mask = self.segmentation.rasterise(whole, size)
        if self.window is None:
            return mask
        corners = np.array(self.window, dtype=np.float64).reshape(2, 2)
        moved = np.sort(transform.apply(corners), axis=0)  # A flip exchanges left and right.
        # The pixels whose centre is inside of the window.
        first = np.ceil(moved[0] - 0.5).astype(np.int64)
        end = np.ceil(moved[1] - 0.5).astype(np.int64)
        left, top, width, height = mask.window
        x0, y0 = max(left, int(first[0])), max(top, int(first[1]))
        x1, y1 = min(left + width, int(end[0])), min(top + height, int(end[1]))
        if x1 <= x0 or y1 <= y0:
            return CroppedMask((left, top, 0, 0), np.zeros((0, 0), dtype=np.bool_))
        pixels = mask.pixels[y0 - top : y1 - top, x0 - left : x1 - left]
        return CroppedMask((x0, y0, x1 - x0, y1 - y0), pixels)


@dataclass(frozen=True)
class Sample:
    """An image with its T objects."""

    image: AugmentedImage  # with the boxes [T,4]
    labels: Ints  # [T]
    segmentations: tuple[PlacedSegmentation, ...] | None = None  # [T] for instance segmentation

    def select(self, rows: NDArray[np.generic]) -> Sample:
        """Return the sample with the objects of these indices only."""
        segmentations = self.segmentations
        if segmentations is not None:
            segmentations = tuple(segmentations[row] for row in rows.tolist())
        image = replace(self.image, boxes=self.image.boxes[rows])
        return Sample(image, self.labels[rows], segmentations)


# A change of a sample before its image is resized. All random numbers come from the generator.
SampleTransform = Callable[[Sample, Generator], Sample]
