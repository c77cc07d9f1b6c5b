"""Run-length encoding of masks (RLE), as in COCO's compressed form and in its JSON."""

from __future__ import annotations

from typing import TypedDict


class RLE(TypedDict):
    """A mask as COCO's compressed run-length encoding."""

    size: list[int]  # height and width
    counts: bytes


class JsonRLE(TypedDict):
    """The same in COCO's JSON, in which the counts are text."""

    size: list[int]  # height and width
    counts: str


def rle_to_json(rle: RLE) -> JsonRLE:
    """Convert to COCO's JSON."""
    height, width = rle["size"]
    return {"size": [int(height), int(width)], "counts": rle["counts"].decode("ascii")}


def rle_from_json(segmentation: object) -> RLE:
    """Convert from COCO's JSON. `ValueError` for anything else, such as polygons."""
    if not isinstance(segmentation, dict):
        raise ValueError("not compressed run lengths")
    size, counts = segmentation.get("size", ()), segmentation.get("counts")
    if not isinstance(counts, str) or len(size) != 2:
        raise ValueError("not compressed run lengths")
    return {"size": size, "counts": counts.encode("ascii")}
