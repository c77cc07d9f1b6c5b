"""Rules for segmentations of an annotation file, and their conversion to `Segmentation`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray

from groupdetr.data.findings import Finding, Findings, printable
from groupdetr.data.json_values import parse_numbers
from groupdetr.data.packed_segmentations import PackedSegmentations
from groupdetr.data.records import Bools, CocoSplit, Floats, Record
from groupdetr.data.segmentations import Polygons, RunLengths, Segmentation, decode_counts
from groupdetr.structures.json_object import JsonObject

_LONGEST_RUN = 2**31 - 1  # pixels; no image has as many
# A mask and its box disagree if an edge differs by more than the sum of these two tolerances.
_TOLERANCE_PIXELS = 2.0
_TOLERANCE_SIDE = 0.1  # fraction of the side of the box


def parse_segmentation(
    value: object, size: tuple[int, int], record: str, findings: Findings
) -> Segmentation | None:
    """Return a segmentation of an image of ``size`` (width, height).

    If it cannot be used, return None and add a finding.
    """
    if value is None or value == []:
        findings.add("mask-missing", record, "it has no segmentation")
        return None
    if isinstance(value, dict):
        return _parse_rle(value, size, record, findings)
    return _parse_polygons(value, size, record, findings)


def _parse_polygons(
    value: object, size: tuple[int, int], record: str, findings: Findings
) -> Polygons | None:
    items = value if type(value) is list else [None]
    well_formed: list[list[float]] = []  # lists of an even number of numbers
    for item in items:
        coordinates = parse_numbers(item) if type(item) is list else None
        if coordinates is not None and len(coordinates) % 2 == 0:
            well_formed.append(coordinates)
    # Two points have no area.
    parts = tuple(np.array(part).reshape(-1, 2) for part in well_formed if len(part) >= 6)
    if len(well_formed) < len(items) or not parts:
        findings.add("mask-malformed", record, f"its segmentation is {printable(value)}")
        return None
    if not all(_within_reach(part, size) for part in parts):
        what = f"its segmentation {printable(value)} reaches far outside the image"
        findings.add("mask-far-outside", record, what)
        return None
    if len(parts) < len(well_formed):
        what = f"a part of its segmentation {printable(value)} has fewer than three points"
        findings.add("mask-short-part", record, what)
    return Polygons(parts)


def _within_reach(points: NDArray[np.float64], size: tuple[int, int]) -> bool:
    """True if no point is farther from the image than the size of the image.

    The rasteriser takes time and memory for every pixel that a polygon passes.
    """
    low, high = points.min(axis=0, keepdims=True), points.max(axis=0, keepdims=True)
    return bool(within_reach(low, high, np.array([size], dtype=np.float64)).all())


def within_reach(low: Floats, high: Floats, sizes: Floats) -> Bools:
    """Return which objects are no farther from their image than its size, [A] bool.

    ``low`` and ``high`` [A,2] are the smallest and the largest x and y of their polygons, and
    ``sizes`` [A,2] the widths and heights of the images.
    """
    return np.asarray(((low >= -sizes) & (high <= 2 * sizes)).all(axis=1), dtype=bool)


def box_within_reach(box: Floats, size: Floats) -> list[float]:
    """Return a box x, y, width, height [4] without what lies farther from the image than its size.

    ``size`` [2] is the width and height of the image.
    """
    corners = np.stack([box[:2], box[:2] + box[2:]])
    clipped = corners.clip(-size, 2 * size)
    if (clipped == corners).all():
        return [float(number) for number in box]
    top_left, bottom_right = clipped
    return [*top_left.tolist(), *(bottom_right - top_left).tolist()]


def _parse_rle(
    value: JsonObject, size: tuple[int, int], record: str, findings: Findings
) -> RunLengths | None:
    width, height = size
    counts = value.get("counts")
    lengths = _parse_counts(counts)
    if lengths is None:
        what = f"the counts of its segmentation are {printable(counts)}"
        findings.add("mask-malformed", record, what)
        return None
    if value.get("size") != [height, width]:
        recorded = printable(value.get("size"))
        what = f"its segmentation has size {recorded}, the image has [{height}, {width}]"
        findings.add("mask-size", record, what)
        return None
    if sum(lengths) != height * width:
        what = f"its counts add up to {printable(sum(lengths))}, not to {height} x {width}"
        findings.add("mask-counts", record, what)
        return None
    if isinstance(counts, str):
        return RunLengths(counts.encode(), (height, width))
    uncompressed = {"size": [height, width], "counts": counts}
    compressed = coco.frPyObjects(uncompressed, height, width)
    return RunLengths(compressed["counts"], (height, width))


def _parse_counts(counts: object) -> list[int] | None:
    """Return run lengths, given as a list or as COCO's compressed text; None for other values."""
    if isinstance(counts, str):
        decoded = decode_counts(counts.encode()) if counts.isascii() else None
        counts = None if decoded is None else decoded.tolist()
    if type(counts) is not list:
        return None
    if not all(type(length) is int and 0 <= length <= _LONGEST_RUN for length in counts):
        return None
    return counts


def box_polygon(box: Sequence[float]) -> Polygons:
    """Return a box x, y, width, height as a polygon."""
    x, y, width, height = box
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return Polygons((np.array(corners, dtype=np.float64),))


def are_normalised(segmentations: PackedSegmentations, sizes: Floats) -> bool:
    """True if all polygons are fractions of the image. ``sizes`` [A,2] are those of the images."""
    return segmentations.are_fractions() and bool(sizes.min() > 1)


def mask_findings(split: CocoSplit) -> Iterator[Finding]:
    """Find trainable objects whose mask is empty or does not agree with the box.

    All masks are rasterised for this.
    """
    for record in split.records:
        yield from _mask_findings(record, str(split.annotation_file))


def _mask_findings(record: Record, file: str) -> Iterator[Finding]:
    segmentations = record.object_masks()
    if not segmentations:
        return
    runs = [item.to_rle(record.height, record.width) for item in segmentations]
    mask_boxes = coco.toBbox(runs).tolist()
    corners = record.corners
    for row, mask_box in zip(np.flatnonzero(record.trainable).tolist(), mask_boxes):
        x, y, width, height = mask_box
        annotation = f"annotation {printable(record.annotation_ids[row])}"
        distance = np.abs(corners[row] - (x, y, x + width, y + height))
        side = corners[row, 2:] - corners[row, :2]
        tolerance = _TOLERANCE_PIXELS + _TOLERANCE_SIDE * np.tile(side, 2)
        if not width * height:
            yield Finding("mask-empty", file, annotation, "its mask has no pixel")
        elif (distance > tolerance).any():
            what = f"its mask lies in {mask_box}, its bbox is {record.boxes[row].tolist()}"
            yield Finding("mask-box-mismatch", file, annotation, what)
