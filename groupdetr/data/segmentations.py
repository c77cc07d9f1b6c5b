"""The shapes of objects as recorded, polygons or run lengths, drawn wherever the transforms of a picture put them.

Polygons are transformed as coordinates and drawn by COCO's own rasteriser, which answers in run lengths. Of these only
the window that an object lies in is made pixels: that of a whole picture would take forty times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray

from groupdetr.data.image_transform import Placement


class Drawn(NamedTuple):
    """A mask within a picture: beyond its window it is empty."""

    window: tuple[int, int, int, int]  # left, top, width and height in pixels
    pixels: NDArray[np.bool_]  # [height,width]


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """The union of polygons, at least one."""

    parts: tuple[NDArray[np.float64], ...]  # [P,2] each: x, y in pixels, as recorded

    def drawn(self, placement: Placement, size: tuple[int, int]) -> Drawn:
        """Within a picture of ``size`` (height, width) that transforms made; the window is tight."""
        return expanded(_union([placement.of(part) for part in self.parts], *size))

    def runs(self, height: int, width: int) -> dict[str, Any]:
        """COCO's compressed run lengths in the picture on disk, which has this size."""
        return _union(self.parts, height, width)


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Run lengths of the pixels of a picture, column after column."""

    counts: bytes  # as COCO compresses them
    size: tuple[int, int]  # height and width of the picture

    def drawn(self, placement: Placement, size: tuple[int, int]) -> Drawn:
        """Within a picture of ``size`` (height, width) that transforms made: a pixel is what its centre hits."""
        (left, top, width, height), pixels = expanded(self.runs(*self.size))
        x, columns = _hits(placement, 0, range(left, left + width), size[1])
        y, rows = _hits(placement, 1, range(top, top + height), size[0])
        return Drawn((x, y, len(columns), len(rows)), pixels[rows[:, None], columns])

    def runs(self, height: int, width: int) -> dict[str, Any]:
        """COCO's compressed run lengths in the picture on disk, which has this size."""
        assert (height, width) == self.size, "checked when they were read"
        return {"size": [height, width], "counts": self.counts}


Shape = Polygons | Runs


def expanded(runs: dict[str, Any]) -> Drawn:
    """The pixels of compressed run lengths, in a tight window."""
    left, top, width, height = (int(x) for x in coco.toBbox(runs))
    lengths = run_lengths(runs["counts"])
    assert lengths is not None
    column, row = np.divmod(lengths.cumsum(), runs["size"][0])
    ends = (column - left) * height + (row - top).clip(0, height)  # of the runs, in the window
    lengths = np.diff(ends.clip(0, width * height), prepend=0)
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return Drawn((left, top, width, height), pixels.reshape(width, height).T)


def run_lengths(counts: bytes) -> NDArray[np.int64] | None:
    """Of COCO's compressed form, the first of zeros; None if it is malformed.

    Numbers are written in digits of five bits, the lowest first; the sixth bit says that another digit follows. From
    the fourth on they are differences to the last but one.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(digits & 32 == 0)
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63 or not len(last) or last[-1] != len(digits) - 1:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    places = 5 * (np.arange(len(digits)) - np.repeat(first, last - first + 1))
    if places.max() > 30:
        return None
    numbers = np.add.reduceat((digits & 31) << places, first)
    numbers -= (digits[last] >> 4 & 1) << places[last] + 5  # the highest bit is the sign
    numbers[1::2], numbers[2::2] = numbers[1::2].cumsum(), numbers[2::2].cumsum()
    return numbers


def _union(polygons: Sequence[NDArray[np.float64]], height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of polygons [P,2]."""
    parts = coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    merged: dict[str, Any] = parts[0] if len(parts) == 1 else coco.merge(parts)
    return merged


def _hits(
    placement: Placement, axis: int, within: range, side: int
) -> tuple[int, NDArray[np.int64]]:
    """Which of the first ``side`` pixels on an axis have their centre on the recorded pixels ``within``: the first
    that has, and for all which one it is, counted from the first within."""
    ends = np.array([within.start, within.stop]) * placement.scale[axis] + placement.shift[axis]
    places = np.arange(max(0, int(np.floor(ends.min()))), min(side, int(np.ceil(ends.max()))))
    hit = (
        np.floor((places + 0.5 - placement.shift[axis]) / placement.scale[axis]).astype(np.int64)
        - within.start
    )
    seen = (hit >= 0) & (hit < len(within))
    return (int(places[seen][0]) if seen.any() else 0), hit[seen]
