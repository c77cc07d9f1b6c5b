"""Segmentations as COCO records them, polygons or run lengths, rasterised after augmentation.

Polygons are transformed as coordinates and rasterised by COCO's own code, which returns run
lengths. Only the window that an object lies in is expanded to pixels: expanding the whole image
would take forty times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray

from groupdetr.data.image_transform import ImageTransform
from groupdetr.structures.rle import RLE


class CroppedMask(NamedTuple):
    """The mask of one object. Outside of its window it is empty."""

    window: tuple[int, int, int, int]  # left, top, width and height in pixels of the image
    pixels: NDArray[np.bool_]  # [height,width]


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """The union of one or more polygons."""

    parts: tuple[NDArray[np.float64], ...]  # [P,2] each: x, y in pixels, as recorded

    def rasterise(self, transform: ImageTransform, size: tuple[int, int]) -> CroppedMask:
        """Return the mask after ``transform``, in an image of ``size`` (height, width).

        The window is tight.
        """
        moved = [transform.apply(part) for part in self.parts]
        return decode_rle(_rasterise_polygons(moved, *size))

    def to_rle(self, height: int, width: int) -> RLE:
        """Return COCO's compressed run lengths in the image on disk, which has this size."""
        return _rasterise_polygons(self.parts, height, width)


@dataclass(frozen=True, slots=True, eq=False)
class RunLengths:
    """Run lengths (RLE) of the pixels of an image, column after column."""

    counts: bytes  # as COCO compresses them
    size: tuple[int, int]  # height and width of the image

    def rasterise(self, transform: ImageTransform, size: tuple[int, int]) -> CroppedMask:
        """Return the mask after ``transform``, in an image of ``size`` (height, width).

        A pixel has the value of the recorded pixel that its centre falls on.
        """
        (left, top, width, height), pixels = decode_rle(self.to_rle(*self.size))
        x, columns = _nearest_pixels(transform, 0, range(left, left + width), size[1])
        y, rows = _nearest_pixels(transform, 1, range(top, top + height), size[0])
        window = (x, y, len(columns), len(rows))
        return CroppedMask(window, pixels[rows[:, None], columns])

    def to_rle(self, height: int, width: int) -> RLE:
        """Return COCO's compressed run lengths in the image on disk, which has this size."""
        assert (height, width) == self.size, "the size is checked when the file is read"
        return {"size": [height, width], "counts": self.counts}


Segmentation = Polygons | RunLengths


def decode_rle(rle: RLE) -> CroppedMask:
    """Decode compressed run lengths to pixels in a tight window."""
    left, top, width, height = (int(x) for x in coco.toBbox(rle))
    lengths = decode_counts(rle["counts"])
    assert lengths is not None
    # Runs go down the columns of the image. Their ends are converted to positions in the window,
    # so that `np.repeat` expands the window and not the image.
    image_height = rle["size"][0]
    column, row = np.divmod(lengths.cumsum(), image_height)
    ends = (column - left) * height + (row - top).clip(0, height)
    lengths_in_window = np.diff(ends.clip(0, width * height), prepend=0)
    is_inside = np.arange(len(lengths_in_window)) % 2 == 1  # the first run is outside
    pixels = np.repeat(is_inside, lengths_in_window)
    return CroppedMask((left, top, width, height), pixels.reshape(width, height).T)


def decode_counts(counts: bytes) -> NDArray[np.int64] | None:
    """Return the run lengths of COCO's compressed form, or None if it is malformed.

    The first length is that of a run of zeros. A number is written in digits of five bits, the
    lowest first; the sixth bit means that another digit follows. From the fourth number on, it is
    the difference to the last but one.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    last = np.flatnonzero(digits & 32 == 0)  # positions of the last digit of every number
    if digits.min() < 0 or digits.max() > 63 or not len(last) or last[-1] != len(digits) - 1:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    position_in_number = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    bit_shift = 5 * position_in_number
    if bit_shift.max() > 30:
        return None
    numbers = np.add.reduceat((digits & 31) << bit_shift, first)
    # The highest bit of the last digit is the sign (two's complement).
    is_negative = digits[last] >> 4 & 1
    numbers -= is_negative << bit_shift[last] + 5
    # Differences to the last but one become lengths: sums over odd and over even positions. The
    # first length stands alone; the third is written as it is.
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _rasterise_polygons(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> RLE:
    """Return the compressed run lengths of the union of polygons [P,2]."""
    coordinates = [polygon.ravel().tolist() for polygon in polygons]
    parts = coco.frPyObjects(coordinates, height, width)
    if len(parts) == 1:
        return parts[0]
    return coco.merge(parts)


def _nearest_pixels(
    transform: ImageTransform, axis: int, recorded: range, side: int
) -> tuple[int, NDArray[np.int64]]:
    """Return which pixels on one axis have their centre on the recorded pixels ``recorded``.

    Only the first ``side`` pixels after ``transform`` count. Returns the first such pixel, and for
    all of them the index of the recorded pixel, counted from the first one of ``recorded``.
    """
    scale = transform.scale[axis]
    shift = transform.shift[axis]
    ends = np.array([recorded.start, recorded.stop]) * scale + shift
    first = max(0, int(np.floor(ends.min())))
    after_last = min(side, int(np.ceil(ends.max())))
    positions = np.arange(first, after_last)
    # The inverse transform of the pixel centres.
    source = np.floor((positions + 0.5 - shift) / scale).astype(np.int64) - recorded.start
    inside = (source >= 0) & (source < len(recorded))
    start = int(positions[inside][0]) if inside.any() else 0
    return start, source[inside]
