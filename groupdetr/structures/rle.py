"""Run-length encoding of masks (RLE), as in COCO's compressed form and in its JSON."""

from __future__ import annotations

from typing import TypedDict


class RLE(TypedDict):
    """A mask as COCO's compressed run-length encoding."""

    size: list[int]  # height and width
    counts: bytes


class JsonRLE(TypedDict):
    """A mask as COCO's compressed run-length encoding in JSON, where the counts are text."""

    size: list[int]  # height and width
    counts: str


def rle_to_json(rle: RLE) -> JsonRLE:
    """Convert a mask to the form that it has in COCO's JSON."""
    height, width = rle["size"]
    return {"size": [int(height), int(width)], "counts": rle["counts"].decode("ascii")}


def rle_from_json(segmentation: object) -> RLE:
    """Convert a mask from COCO's JSON.

    `ValueError` if it is not a compressed run-length encoding but polygons, for example.
    """
    if not isinstance(segmentation, dict):
        raise ValueError("not compressed run lengths")
    size = segmentation.get("size", ())
    counts = segmentation.get("counts")
    if not isinstance(counts, str) or len(size) != 2:
        raise ValueError("not compressed run lengths")
    return {"size": size, "counts": counts.encode("ascii")}
