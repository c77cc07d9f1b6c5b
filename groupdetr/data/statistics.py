"""What is in a data set, and what of it deserves a word before training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from groupdetr.data.findings import Finding, shown
from groupdetr.data.records import CocoSplit, Ints

_SMALL, _MEDIUM = 32**2, 96**2  # square pixels, COCO's own limits


@dataclass(frozen=True)
class SplitCounts:
    """The figures of one split. Boxes are those that training would use: no crowds, none without area."""

    images: int
    empty_images: int  # without such a box
    boxes: int
    crowds: int
    objects_per_image: dict[str, float]  # p50, p99, max
    sizes: dict[str, int]  # small, medium, large by COCO's limits on the box as it is in the image
    classes: list[dict[str, Any]]  # id, name, boxes

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def count(split: CocoSplit) -> SplitCounts:
    objects = [record.training() for record in split.records]
    boxes = np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _ in objects)])
    labels = np.concatenate([np.zeros(0, np.int64), *(labels for _, labels in objects)])
    per_image = np.array([len(labels) for _, labels in objects], dtype=np.int64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    small, medium = int((areas < _SMALL).sum()), int((areas < _MEDIUM).sum())
    return SplitCounts(
        images=len(split.records),
        empty_images=int((per_image == 0).sum()),
        boxes=len(boxes),
        crowds=sum(int(record.crowd.sum()) for record in split.records),
        objects_per_image=_percentiles(per_image),
        sizes={"small": small, "medium": medium - small, "large": len(boxes) - medium},
        classes=_histogram(split, labels),
    )


def _percentiles(per_image: Ints) -> dict[str, float]:
    if not len(per_image):
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    p50, p99, largest = np.percentile(per_image, [50, 99, 100]).tolist()
    return {"p50": p50, "p99": p99, "max": largest}


def _histogram(split: CocoSplit, labels: Ints) -> list[dict[str, Any]]:
    boxes = np.bincount(labels, minlength=len(split.categories)).tolist()
    return [{"id": c.id, "name": c.name, "boxes": n} for c, n in zip(split.categories, boxes)]


def remarks(split: CocoSplit, counts: SplitCounts, num_queries: int | None) -> Iterator[Finding]:
    """What the figures of one split say against training with them."""
    file, train = str(split.annotation_file), split.name == "train"
    if not counts.boxes:
        code = "no-training-boxes" if train else "no-val-boxes"
        yield Finding(code, file, "", f"no image of the {split.name} split has an object")
    elif counts.empty_images:
        yield Finding(
            "empty-images",
            file,
            "",
            f"{counts.empty_images} of {counts.images} images have no object",
        )
    if counts.crowds:
        yield Finding("crowds", file, "", f"{counts.crowds} annotations are crowds")
    if train and counts.boxes:
        for row in counts.classes:
            if not row["boxes"]:
                what = f"class {shown(row['name'])} has no box in the train split"
                yield Finding("class-without-boxes", file, f"category {shown(row['id'])}", what)
    if num_queries:
        yield from _crowded(file, counts.objects_per_image, num_queries)


def _crowded(file: str, objects: dict[str, float], num_queries: int) -> Iterator[Finding]:
    """More objects than queries: a query finds one object at most."""
    p99, largest = objects["p99"], objects["max"]
    if p99 > num_queries:
        what = f"one image in a hundred has {p99:.0f} objects or more, one has {largest:.0f}; queries: {num_queries}"
        yield Finding("objects-exceed-queries", file, "", what)
    elif largest > num_queries:
        yield Finding(
            "crowded-images",
            file,
            "",
            f"an image has {largest:.0f} objects; queries: {num_queries}",
        )
