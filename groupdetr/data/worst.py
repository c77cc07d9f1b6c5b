"""The worst case of a data set: the largest pictures and the most objects that a training batch can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from groupdetr.data.batch import Batch
from groupdetr.data.records import Record
from groupdetr.data.transforms import largest
from groupdetr.structures import Target


@dataclass(frozen=True)
class Worst:
    """What pictures of a data set can become in training, as heights and widths in pixels, and their objects."""

    alone: tuple[int, int]  # of the largest picture
    together: tuple[int, int]  # to which a batch can be padded: the highest picture may stand beside the widest
    objects: int  # of a picture

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
        labels = torch.zeros(self.objects, dtype=torch.int64)
        targets = [Target(labels, 0.25 + 0.25 * torch.rand(self.objects, 4)) for _ in range(images)]
        pixels = torch.zeros(images, 3, *self.size(images), dtype=torch.uint8)
        return Batch(pixels, torch.tensor([self.size(images)] * images), targets, [*range(images)])


def worst_of(records: Sequence[Record], imgsz: int, cropped: bool, burden: Callable[[int], int]) -> Worst:
    """Of a split, as its pictures are resized to ``imgsz`` and, it may be, ``cropped``. ``burden`` of a number of
    objects: how much they weigh, as more objects may be fewer queries where they are denoised."""
    shapes = {(record.height, record.width) for record in records}
    sizes = [size for shape in shapes for size in largest(*shape, imgsz, cropped)]
    counts = {len(record.training()[1]) for record in records}
    together = (max(height for height, _ in sizes), max(width for _, width in sizes))
    return Worst(max(sizes, key=math.prod), together, max(sorted(counts, reverse=True), key=burden))
