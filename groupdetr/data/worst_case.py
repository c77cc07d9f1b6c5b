"""The worst case of a data set: the largest pictures and the most objects that a training batch can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groupdetr.data.batch import Batch
from groupdetr.data.records import Record
from groupdetr.data.transforms import largest
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures.masks import Bitmaps
from groupdetr.structures.targets import Target


@dataclass(frozen=True)
class Worst:
    """What pictures of a data set can become in training, as heights and widths in pixels, and their objects."""

    alone: tuple[int, int]  # of the largest picture
    together: tuple[
        int, int
    ]  # to which a batch can be padded: the highest picture may stand beside the widest
    objects: int  # of a picture
    masks: bool = False  # do objects have them?

    def __str__(self) -> str:
        height, width = self.together
        return f"images of {width} x {height} pixels with {self.objects} objects"

    def size(self, images: int) -> tuple[int, int]:
        return self.alone if images == 1 else self.together

    def pixels(self, images: int) -> int:
        """Of a batch."""
        return images * math.prod(self.size(images))

    def batch(self, images: int) -> Batch:
        """Black pictures, with random boxes of the first class."""
        targets = [self.target(images) for _ in range(images)]
        pixels = torch.zeros(images, 3, *self.size(images), dtype=torch.uint8)
        return Batch(pixels, torch.tensor([self.size(images)] * images), targets, [*range(images)])

    def target(self, images: int) -> Target:
        """Of a picture in such a batch; a mask, if there is one, fills its box."""
        boxes = 0.25 + 0.25 * torch.rand(self.objects, 4)
        labels = torch.zeros(self.objects, dtype=torch.int64)
        return Target(labels, boxes, filled(boxes, *self.size(images)) if self.masks else None)


def filled(boxes: Tensor, height: int, width: int) -> Bitmaps:
    """Masks of boxes [T,4] that lie in a picture of this size: whatever pixel they touch."""
    side = torch.tensor([width, height, width, height])
    corners = cxcywh_to_xyxy(boxes) * side
    start = corners[:, :2].floor()
    windows = torch.cat([start, corners[:, 2:].ceil() - start], 1).long()
    area = int(windows[:, 2:].prod(1).sum())
    return Bitmaps((torch.arange(area + 1) < area).to(torch.uint8), windows)


def worst_of(
    records: Sequence[Record], imgsz: int, augment: str, burden: Callable[[int], int]
) -> Worst:
    """Of a split, as ``augment`` resizes its pictures for ``imgsz``. ``burden`` of a number of objects: how much they
    weigh, as more objects may be fewer queries where they are denoised."""
    shapes = {(record.height, record.width) for record in records}
    sizes = [size for shape in shapes for size in largest(*shape, imgsz, augment)]
    counts = {len(record.training()[1]) for record in records}
    together = (max(height for height, _ in sizes), max(width for _, width in sizes))
    masks = any(record.shapes is not None for record in records)
    return Worst(max(sizes, key=math.prod), together, heaviest(counts, burden), masks)


def heaviest(counts: Collection[int], burden: Callable[[int], int]) -> int:
    """The number of objects that weighs most, the largest of those that weigh alike."""
    return max(sorted(counts, reverse=True), key=burden)
