"""What can be wrong with boxes: each rule looks at all boxes of a file at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.records import Bools, Floats, clamped

_LARGEST = 1e9  # pixels; no picture is that large, and its square is finite
_ROUNDING = 1.0  # pixels; many tools write edges that are off by one


def unusable(boxes: Floats) -> dict[str, Bools]:
    """Code -> which of the boxes [A,4] no reading makes sense of."""
    finite = _rows(np.abs(boxes) <= _LARGEST)
    return {"box-not-finite": ~finite, "box-negative": finite & ~_rows(boxes[:, 2:] >= 0)}


def misplaced(boxes: Floats, sizes: Floats) -> dict[str, Bools]:
    """Code -> which of the boxes [A,4] have no area, or do not lie within their images of ``sizes`` [A,2]."""
    corners = clamped(boxes, sizes)
    has_area, seen = _rows(boxes[:, 2:] > 0), _rows(corners[:, 2:] > corners[:, :2])
    within = _rows(_overshoot(boxes, sizes) <= _ROUNDING)
    return {
        "box-no-area": ~has_area,
        "box-outside": has_area & ~seen,
        "box-clamped": seen & ~within,
    }


def repeated(boxes: Floats, owners: NDArray[Any]) -> Bools:
    """Which of the boxes [A,4] occurred before with the same owner, a row [A,.] of image and class."""
    rows = np.concatenate([owners, boxes], axis=1)
    order = np.lexsort(rows.T)  # stable: of equal rows the first comes first
    again = np.zeros(len(rows), dtype=bool)
    again[order[1:]] = _rows(rows[order[1:]] == rows[order[:-1]])
    return again


def convention(boxes: Floats, sizes: Floats) -> str:
    """The code of a convention that the boxes [A,4] of a file follow instead of x, y, width, height in pixels.

    Fractions of the picture: every number is at most 1. Two corners: every box makes sense as such, and as x, y,
    width, height a good part of them (a tenth) would leave its picture by far (a tenth of its size).
    """
    solid = _rows(boxes[:, 2:] > 0)
    boxes, sizes = boxes[solid], sizes[solid]
    if not len(boxes):
        return ""
    if boxes.max() <= 1 and sizes.min() > 1:
        return "boxes-look-normalised"
    corners = _rows(boxes[:, 2:] > boxes[:, :2]) & _rows(boxes[:, 2:] <= sizes + _ROUNDING)
    far = ~_rows(_overshoot(boxes, sizes) <= 0.1 * sizes)
    return "boxes-look-xyxy" if corners.mean() >= 0.99 and far.mean() >= 0.1 else ""


def _overshoot(boxes: Floats, sizes: Floats) -> Floats:
    """By how many pixels boxes [A,4] leave their images, [A,2] in x and y."""
    return np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes)


def _rows(condition: Bools) -> Bools:
    """Which rows of [A,.] fulfil a condition in all columns, [A]."""
    return np.asarray(condition.all(axis=1), dtype=bool)
