"""What can be wrong with the segmentation of an object, and the shape that it is otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco
from numpy.typing import NDArray

from groupdetr.data.findings import Finding, Findings, shown
from groupdetr.data.records import CocoSplit, Floats, Record
from groupdetr.data.segmentations import Polygons, Runs, Shape, run_lengths
from groupdetr.data.values import numbers

_LONGEST = 2**31 - 1  # run, in pixels; no picture has as many
_ASIDE = (
    2.0,
    0.1,
)  # pixels, and part of the box's side: by more than both together a mask and its box disagree


def shape_of(value: Any, size: tuple[int, int], record: str, found: Findings) -> Shape | None:
    """Of a segmentation in an image of ``size`` (width, height); None, and a finding, where it cannot be used."""
    if value is None or value == []:
        found.add("mask-missing", record, "it has no segmentation")
        return None
    if isinstance(value, dict):
        return _runs(value, size, record, found)
    parts = (
        [numbers(part) if type(part) is list else None for part in value]
        if type(value) is list
        else [None]
    )
    sound = [part for part in parts if part is not None and len(part) % 2 == 0]
    solid = tuple(np.array(part).reshape(-1, 2) for part in sound if len(part) >= 6)
    if len(sound) < len(parts) or not solid:
        found.add("mask-malformed", record, f"its segmentation is {shown(value)}")
        return None
    if not all(_within_reach(part, size) for part in solid):
        found.add(
            "mask-out-of-reach",
            record,
            f"its segmentation {shown(value)} leads far out of the image",
        )
        return None
    if len(solid) < len(sound):
        found.add(
            "mask-short-part",
            record,
            f"a part of its segmentation {shown(value)} has no three points",
        )
    return Polygons(solid)


def _within_reach(points: NDArray[np.float64], size: tuple[int, int]) -> bool:
    """No further from the image than its own size. The rasteriser takes time and memory for every pixel it passes."""
    return bool(((points >= -np.array(size)) & (points <= 2 * np.array(size))).all())


def _runs(
    value: dict[str, Any], size: tuple[int, int], record: str, found: Findings
) -> Runs | None:
    width, height = size
    counts = value.get("counts")
    lengths = _lengths(counts)
    if lengths is None:
        found.add("mask-malformed", record, f"the counts of its segmentation are {shown(counts)}")
    elif value.get("size") != [height, width]:
        what = f"its segmentation has size {shown(value.get('size'))}, the image has [{height}, {width}]"
        found.add("mask-size", record, what)
    elif sum(lengths) != height * width:
        found.add(
            "mask-counts",
            record,
            f"its counts add up to {shown(sum(lengths))}, not to {height} x {width}",
        )
    elif isinstance(counts, str):
        return Runs(counts.encode(), (height, width))
    else:
        whole = {"size": [height, width], "counts": counts}
        return Runs(coco.frPyObjects(whole, height, width)["counts"], (height, width))
    return None


def _lengths(counts: Any) -> list[int] | None:
    """Run lengths, written as a list or as COCO's compressed text; None for anything else."""
    if isinstance(counts, str):
        read = run_lengths(counts.encode()) if counts.isascii() else None
        counts = None if read is None else read.tolist()
    whole = type(counts) is list and all(
        type(length) is int and 0 <= length <= _LONGEST for length in counts
    )
    return counts if whole else None


def as_polygon(box: Sequence[float]) -> Polygons:
    """A box x, y, width, height."""
    x, y, width, height = box
    return Polygons(
        (
            np.array(
                [(x, y), (x + width, y), (x + width, y + height), (x, y + height)], dtype=np.float64
            ),
        )
    )


def normalised(shapes: Sequence[Shape], sizes: Floats) -> bool:
    """Are all polygons among the shapes, in images of ``sizes`` [A,2], fractions of the picture?"""
    polygons = [shape for shape in shapes if isinstance(shape, Polygons)]
    return (
        bool(polygons)
        and all(part.max() <= 1 for shape in polygons for part in shape.parts)
        and sizes.min() > 1
    )


def remarks(split: CocoSplit) -> Iterator[Finding]:
    """Masks, of objects to learn, that are empty or elsewhere than their boxes; all of them are drawn for that."""
    for record in split.records:
        yield from (
            Finding(code, str(split.annotation_file), *about) for code, *about in _odd(record)
        )


def _odd(record: Record) -> Iterator[tuple[str, str, str]]:
    """Code, name and words."""
    rows, corners = np.flatnonzero(record.learned).tolist(), record.corners
    runs = [shape.runs(record.height, record.width) for shape in record.outlines() or ()]
    for row, (x, y, width, height) in zip(rows, coco.toBbox(runs).tolist() if runs else ()):
        name = f"annotation {shown(record.annotation_ids[row])}"
        aside = np.abs(corners[row] - (x, y, x + width, y + height))
        allowed = _ASIDE[0] + _ASIDE[1] * np.tile(corners[row, 2:] - corners[row, :2], 2)
        if not width * height:
            yield "mask-empty", name, "its mask has no pixel"
        elif (aside > allowed).any():
            where = [x, y, width, height]
            yield (
                "mask-beside-box",
                name,
                f"its mask lies in {where}, its bbox is {record.boxes[row].tolist()}",
            )
