"""Rules for boxes of an annotation file. Each rule checks all boxes of the file at once."""

from __future__ import annotations

import numpy as np

from groupdetr.data.records import Bools, Floats, Ints, clip_boxes

_LARGEST = 1e9  # pixels; no image is that large, and the square is still finite
_WEIGHTS = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0, 13.0])  # of the columns image, class and box
_ROUNDING = 1.0  # pixels; many tools write edges that are off by one


def unusable(boxes: Floats) -> dict[str, Bools]:
    """Return for each code which of the boxes [A,4] cannot be used at all, [A] bool."""
    finite = _all_columns(np.abs(boxes) <= _LARGEST)
    not_negative = _all_columns(boxes[:, 2:] >= 0)
    return {"box-not-finite": ~finite, "box-negative": finite & ~not_negative}


def misplaced(boxes: Floats, sizes: Floats) -> dict[str, Bools]:
    """Return for each code which of the boxes [A,4] it applies to, [A] bool.

    The codes are for boxes without area and for boxes that are not inside their image. ``sizes``
    [A,2] are the widths and heights of the images.
    """
    corners = clip_boxes(boxes, sizes)
    has_area = _all_columns(boxes[:, 2:] > 0)
    has_area_inside = _all_columns(corners[:, 2:] > corners[:, :2])
    is_inside = _all_columns(_overshoot(boxes, sizes) <= _ROUNDING)
    return {
        "box-no-area": ~has_area,
        "box-outside": has_area & ~has_area_inside,
        "box-clamped": has_area_inside & ~is_inside,
    }


def repeated(boxes: Floats, owners: Ints) -> Bools:
    """Return which of the boxes [A,4] occurred before with the same owner, [A] bool.

    An owner is a row [A,.] of image and class.
    """
    rows = np.concatenate([owners, boxes], axis=1)
    is_repeated = np.zeros(len(rows), dtype=bool)
    # Equal rows have equal sums. Few other rows have, so only few rows are compared. The columns
    # are added one by one: a matrix product may round two equal rows in different ways.
    sums = np.zeros(len(rows))
    for column, weight in zip(rows.T, _WEIGHTS, strict=True):
        sums += column * weight
    order = np.argsort(sums, kind="stable")
    is_equal = np.diff(sums[order]) == 0
    may_be_equal = np.zeros(len(rows), dtype=bool)
    may_be_equal[order[1:][is_equal]] = may_be_equal[order[:-1][is_equal]] = True
    candidates = np.flatnonzero(may_be_equal)
    # After sorting, equal rows are neighbours. The sort is stable, so the first one stays first.
    order = candidates[np.lexsort(rows[candidates].T)]
    is_repeated[order[1:]] = _all_columns(rows[order[1:]] == rows[order[:-1]])
    return is_repeated


def wrong_convention(boxes: Floats, sizes: Floats) -> str:
    """Return the code of the wrong convention that the boxes [A,4] of a file follow, or "".

    They should be x, y, width, height in pixels. They look like fractions of the image if every
    number is at most 1. They look like two corners if nearly all of them make sense as such, and
    if as x, y, width, height at least a tenth of them would leave its image by more than a tenth
    of the image's size.
    """
    has_area = _all_columns(boxes[:, 2:] > 0)
    boxes, sizes = boxes[has_area], sizes[has_area]
    if not len(boxes):
        return ""
    if boxes.max() <= 1 and sizes.min() > 1:
        return "boxes-look-normalised"
    ordered = _all_columns(boxes[:, 2:] > boxes[:, :2])
    inside_as_corners = _all_columns(boxes[:, 2:] <= sizes + _ROUNDING)
    far_outside = ~_all_columns(_overshoot(boxes, sizes) <= 0.1 * sizes)
    valid_as_corners = ordered & inside_as_corners
    if valid_as_corners.mean() >= 0.99 and far_outside.mean() >= 0.1:
        return "boxes-look-xyxy"
    return ""


def _overshoot(boxes: Floats, sizes: Floats) -> Floats:
    """Return by how many pixels boxes [A,4] reach out of their images, [A,2] in x and y."""
    return np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes)


def _all_columns(condition: Bools) -> Bools:
    """Return which rows of [A,.] fulfil a condition in all columns, [A]."""
    return np.asarray(condition.all(axis=1), dtype=bool)
