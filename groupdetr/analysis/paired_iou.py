"""The IoU of boxes that belong together, one pair at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def paired_iou(boxes: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Return the IoU of each box with the other box at the same position: [...].

    Both are x0, y0, x1, y1, [...,4], and are broadcast. It is nan where a coordinate is nan, and 0
    for two boxes without area.
    """
    a, b = np.broadcast_arrays(np.asarray(boxes, float), np.asarray(others, float))
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clip(min=0).prod(axis=-1)
    union = _area(a) + _area(b) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1)
    return area
