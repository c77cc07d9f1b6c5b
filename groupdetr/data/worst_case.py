"""The worst-case batch of a dataset: the largest images and the most objects in training.

It is used to measure how much memory a training needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from groupdetr.data.batch import ImageBatch
from groupdetr.data.records import ObjectColumns, Record
from groupdetr.data.transforms import (
    ANY_SHAPE,
    LONGEST,
    SHORTEST,
    InputShape,
    largest_sizes,
    scale_length,
)
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.targets import Target

MAX_RATIO = 16  # of the sides of an image that a transform of the user returns


@dataclass(frozen=True)
class WorstCaseImageBatch:
    """The largest sizes that images of a dataset have in training, and the most objects.

    Sizes are (height, width) in pixels. ``single_size`` is that of the image with most pixels.
    ``batch_size`` is the largest padded size of a batch, because the highest and the widest image
    may be in one batch.
    """

    single_size: tuple[int, int]
    batch_size: tuple[int, int]
    objects: int  # of one image
    masks: bool = False  # True if the objects have masks

    def __str__(self) -> str:
        height, width = self.batch_size
        return f"images of {width} x {height} pixels with {self.objects} objects"

    def size(self, num_images: int) -> tuple[int, int]:
        """Return height and width of a padded batch of ``num_images`` images."""
        return self.single_size if num_images == 1 else self.batch_size

    def pixels(self, num_images: int) -> int:
        """Return the number of pixels of a padded batch of ``num_images`` images."""
        return num_images * math.prod(self.size(num_images))

    def batch(self, num_images: int) -> ImageBatch:
        """Return a batch of black images with random boxes of the first class."""
        targets = [self.target(num_images) for _ in range(num_images)]
        size = self.size(num_images)
        pixels = torch.zeros(num_images, 3, *size, dtype=torch.uint8)
        sizes = torch.tensor([size] * num_images)
        return ImageBatch(pixels, sizes, targets, list(range(num_images)))

    def target(self, num_images: int) -> Target:
        """Return the target of one image in a batch of ``num_images``. Masks fill their boxes."""
        boxes = 0.25 + 0.25 * torch.rand(self.objects, 4)
        labels = torch.zeros(self.objects, dtype=torch.int64)
        masks = filled_masks(boxes, *self.size(num_images)) if self.masks else None
        return Target(labels, boxes, masks)


def filled_masks(boxes: Tensor, height: int, width: int) -> CroppedMasks:
    """Return masks that fill boxes [T,4], cx,cy,w,h in [0,1] of an image of this size.

    A mask has every pixel that its box touches. The boxes must lie in the image.
    """
    side = torch.tensor([width, height, width, height])
    corners = cxcywh_to_xyxy(boxes) * side
    top_left = corners[:, :2].floor()
    bottom_right = corners[:, 2:].ceil()
    windows = torch.cat([top_left, bottom_right - top_left], dim=1).long()
    area = int(windows[:, 2:].prod(1).sum())
    # `CroppedMasks` ends with one zero.
    pixels = (torch.arange(area + 1) < area).to(torch.uint8)
    return CroppedMasks(pixels, windows)


def worst_case(
    records: Sequence[Record],
    imgsz: int,
    augment: str,
    query_count: Callable[[int], int],
    mosaic: bool = False,
    any_shape: bool = False,
    shape: InputShape = ANY_SHAPE,
    offsets: Sequence[int] = (0,),
) -> WorstCaseImageBatch:
    """Return the worst case of a split whose images are augmented by ``augment`` for ``imgsz``.

    With ``mosaic``, an image may be a square with the objects of four. With ``any_shape``, a
    transform of the user may give images of any width and height, up to a ratio of `MAX_RATIO`.
    ``shape`` and ``offsets`` are those of `detr_transform`.
    ``query_count(n)``: queries per group for n objects. Not monotonic: with denoising, more
    objects can mean fewer copies.
    """
    shapes = {(record.height, record.width) for record in records}
    object_counts = set(ObjectColumns.from_records(records).counts.tolist())
    if mosaic:
        shapes.add((imgsz, imgsz))
        # Objects may be cut off, so any number up to that of four images is possible.
        object_counts = set(range(4 * max(object_counts) + 1))
    if any_shape:
        # Beyond the ratio of the longest and the shortest side, an image only becomes narrower.
        shapes |= {(SHORTEST[-1], LONGEST), (LONGEST, SHORTEST[-1])}
        object_counts |= set(range(max(object_counts) + 1))
    sizes: list[tuple[int, int]] = []
    if any_shape and augment != "lsj" and not shape.square:
        # The shortest side is rounded to whole pixels, and the longest one follows from it.
        longest = shape.round(scale_length(LONGEST, imgsz) + MAX_RATIO // 2)
        shortest = shape.round(max(1, longest // MAX_RATIO))
        sizes += [(shortest, longest), (longest, shortest)]
    for height, width in shapes:
        sizes += largest_sizes(height, width, imgsz, augment, shape, offsets)
    max_height = max(height for height, _ in sizes)
    max_width = max(width for _, width in sizes)
    return WorstCaseImageBatch(
        single_size=max(sizes, key=math.prod),
        batch_size=(max_height, max_width),
        objects=max_by_load(object_counts, query_count),
        masks=any(record.segmentations is not None for record in records),
    )


def max_by_load(object_counts: Collection[int], query_count: Callable[[int], int]) -> int:
    """Return the number of objects with the most queries; the largest one if several are equal."""
    return max(sorted(object_counts, reverse=True), key=query_count)
