"""Statistics of a split, and the findings that follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from groupdetr.console.text import quantity
from groupdetr.data.findings import Finding, printable
from groupdetr.data.records import CocoSplit, Ints, ObjectColumns
from groupdetr.structures.json_object import JsonObject

_SMALL, _MEDIUM = 32**2, 96**2  # square pixels, COCO's own limits
# A class is rare if it has fewer boxes than this, and a smaller share of the boxes than this.
_RARE_BOXES, _RARE_SHARE = 10, 0.02


@dataclass(frozen=True)
class ClassStatistics:
    """The number of boxes of one class."""

    id: int | str
    name: str
    boxes: int


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of one split. Boxes are those of trainable objects: no crowds, none without area.

    ``sizes`` counts small, medium and large boxes by COCO's limits, on the part of a box that lies
    in the image.
    """

    images: int
    empty_images: int  # without such a box
    boxes: int
    crowds: int
    objects_per_image: dict[str, float]  # p50, p99, max
    sizes: dict[str, int]  # small, medium, large
    classes: list[ClassStatistics]

    def to_json(self) -> JsonObject:
        return asdict(self)


def split_statistics(split: CocoSplit) -> SplitStatistics:
    """Return the statistics of a split."""
    objects = ObjectColumns.from_records(split.records)
    boxes, per_image = objects.corners, objects.counts
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    small = int((areas < _SMALL).sum())
    small_or_medium = int((areas < _MEDIUM).sum())
    sizes = {
        "small": small,
        "medium": small_or_medium - small,
        "large": len(boxes) - small_or_medium,
    }
    return SplitStatistics(
        images=len(split.records),
        empty_images=int((per_image == 0).sum()),
        boxes=len(boxes),
        crowds=objects.crowds,
        objects_per_image=_percentiles(per_image),
        sizes=sizes,
        classes=_class_histogram(split, objects.labels),
    )


def _percentiles(per_image: Ints) -> dict[str, float]:
    if not len(per_image):
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    p50, p99, largest = np.percentile(per_image, [50, 99, 100]).tolist()
    return {"p50": p50, "p99": p99, "max": largest}


def _class_histogram(split: CocoSplit, labels: Ints) -> list[ClassStatistics]:
    num_boxes = np.bincount(labels, minlength=len(split.categories)).tolist()
    return [
        ClassStatistics(category.id, category.name, boxes)
        for category, boxes in zip(split.categories, num_boxes)
    ]


def statistics_findings(
    split: CocoSplit, statistics: SplitStatistics, num_queries: int | None
) -> Iterator[Finding]:
    """Yield the findings that follow from the statistics of a split.

    ``num_queries`` is that of one group; None skips the comparison with the number of objects.
    """
    file = str(split.annotation_file)
    is_train = split.name == "train"
    if not statistics.boxes:
        code = "no-training-boxes" if is_train else "no-val-boxes"
        yield Finding(code, file, "", f"no image of the {split.name} split has an object")
    elif statistics.empty_images:
        what = f"{statistics.empty_images} of {statistics.images} images have no object"
        yield Finding("empty-images", file, "", what)
    if statistics.crowds:
        what = f"{quantity(statistics.crowds, 'crowd')} among the annotations"
        yield Finding("crowds", file, "", what)
    if is_train and statistics.boxes:
        for row in statistics.classes:
            record = f"category {printable(row.id)}"
            if not row.boxes:
                what = f"class {printable(row.name)} has no box in the train split"
                yield Finding("class-without-boxes", file, record, what)
            elif row.boxes < _RARE_BOXES and row.boxes < _RARE_SHARE * statistics.boxes:
                boxes = quantity(row.boxes, "box", "boxes")
                what = (
                    f"class {printable(row.name)} has {boxes} of {statistics.boxes} "
                    "in the train split"
                )
                yield Finding("rare-class", file, record, what)
    if num_queries is not None and statistics.objects_per_image["max"] > num_queries:
        counts = ObjectColumns.from_records(split.records).counts.tolist()
        yield from crowded_findings(counts, num_queries, file, "", "images")


def crowded_findings(
    counts: Sequence[int], num_queries: int, file: str, record: str, noun: str
) -> Iterator[Finding]:
    """Find images with more objects than queries. A query detects at most one object.

    ``counts`` are the numbers of objects of all images, which are called ``noun``. ``num_queries``
    is that of one group. ``record`` is that of the finding.
    """
    per_image = np.array(counts, dtype=np.int64)
    lost = np.maximum(per_image - num_queries, 0)
    if not lost.any():
        return
    what = (
        f"{int((lost > 0).sum())} of {len(per_image)} {noun} have more objects than a group has "
        f"queries ({num_queries}), up to {int(per_image.max())}: {int(lost.sum())} of "
        f"{int(per_image.sum())} objects are lost"
    )
    is_common = np.percentile(per_image, 99) > num_queries
    yield Finding("objects-exceed-queries" if is_common else "crowded-images", file, record, what)
