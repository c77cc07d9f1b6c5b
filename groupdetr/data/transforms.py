"""DETR's augmentation (Carion et al. 2020, appendix A.4) and large scale jitter, both at any scale.

A transform takes a view and a generator, from which it draws, and gives another view. Torchvision resizes; its own
transforms are not used, since what they do besides takes two fifths as long as resizing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from groupdetr.data.image_transform import Placement

SHORTEST = tuple(range(480, 801, 32))  # pixels of the shortest side; validation takes the last
LONGEST = 1333
CROP_SHORTEST = (400, 500, 600)  # resized to one of these, then
CROP = (384, 600)  # cropped to a width and a height between these
IMGSZ = SHORTEST[-1]
SQUARE = 1024  # the side of what large scale jitter makes of every picture
JITTER = (0.1, 2.0)  # between these times as large as fits into the square
GREY = 128  # where there is no picture in it


@dataclass(frozen=True)
class View:
    """A picture, and where its objects are in it."""

    picture: Tensor  # [3,H,W] uint8; resized at full pace if dense and channels last in memory
    boxes: NDArray[np.float32]  # [T,4] x0, y0, x1, y1 in pixels
    placement: Placement = field(default_factory=Placement)  # of the picture on disk in this one

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.picture.shape[1], self.picture.shape[2]

    def flipped(self) -> View:
        """Left is right."""
        boxes = self.boxes.copy()
        boxes[:, ::2] = self.size[1] - self.boxes[:, 2::-2]
        return View(self.picture.flip(-1), boxes, self.placement.then((-1, 1), (self.size[1], 0)))

    def resized(self, height: int, width: int) -> View:
        """Bilinear and without aliasing."""
        scale = (width / self.size[1], height / self.size[0])
        boxes = self.boxes.copy()
        boxes[:, ::2] *= scale[0]
        boxes[:, 1::2] *= scale[1]
        return View(F.resize(self.picture, [height, width]), boxes, self.placement.then(scale))

    def cropped(self, top: int, left: int, height: int, width: int) -> View:
        """A part of the picture, laid out anew, and of the boxes what is inside; that may be nothing."""
        boxes = np.empty_like(self.boxes)
        boxes[:, ::2] = (self.boxes[:, ::2] - left).clip(0, width)
        boxes[:, 1::2] = (self.boxes[:, 1::2] - top).clip(0, height)
        picture = self.picture[:, top : top + height, left : left + width].clone()
        return View(picture, boxes, self.placement.then(shift=(-left, -top)))

    def padded(self, height: int, width: int) -> View:
        """With grey below and to the right, up to this size. Not after a crop of the same side: masks are cut where the
        picture ends, so what the crop took of them would be drawn on the grey."""
        picture = torch.full((height, width, len(self.picture)), GREY, dtype=torch.uint8).permute(
            2, 0, 1
        )
        picture[:, : self.size[0], : self.size[1]] = self.picture
        return View(picture, self.boxes.copy(), self.placement)


Transform = Callable[[View, Generator], View]


def scaled(pixels: int, imgsz: int) -> int:
    """A length of DETR's menu for a validation size of ``imgsz`` instead of 800."""
    return max(1, round(pixels * imgsz / IMGSZ))


def drawn(low: int, high: int, generator: Generator) -> int:
    """A whole number, ``high`` included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


@dataclass(frozen=True)
class ResizeShortest:
    """DETR's rule in whole pixels: the shortest side to one of ``sizes``, the longest at most ``longest``."""

    sizes: Sequence[int]
    longest: int | None = None

    def __call__(self, view: View, generator: Generator) -> View:
        return view.resized(*self.size(*view.size, generator))

    def size(self, height: int, width: int, generator: Generator) -> tuple[int, int]:
        """Height and width to be."""
        size = self.sizes[drawn(0, len(self.sizes) - 1, generator)]
        return resized(height, width, size, self.longest)


def resized(height: int, width: int, size: int, most: int | None) -> tuple[int, int]:
    """Height and width with the shortest side at ``size``, or less where the longest would pass ``most``."""
    shortest, longest = min(height, width), max(height, width)
    if most is not None and longest / shortest * size > most:
        size = round(most * shortest / longest)
    size = max(1, size)
    other = max(1, int(size * longest / shortest))
    return (size, other) if height <= width else (other, size)


@dataclass(frozen=True)
class CropBetween:
    """Crop to a width and a height each drawn from [least, min(side, most)]; a shorter side is kept."""

    least: int
    most: int

    def __call__(self, view: View, generator: Generator) -> View:
        return view.cropped(*self.place(*view.size, generator))

    def place(self, height: int, width: int, generator: Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        sides = [
            drawn(min(self.least, side), min(self.most, side), generator)
            for side in (height, width)
        ]
        starts = [drawn(0, whole - side, generator) for whole, side in zip((height, width), sides)]
        return starts[0], starts[1], sides[0], sides[1]


@dataclass(frozen=True)
class FlipAnd:
    """Flip every other picture, then go on."""

    then: Transform

    def __call__(self, view: View, generator: Generator) -> View:
        return self.then(
            view.flipped() if torch.rand(1, generator=generator) < 0.5 else view, generator
        )


@dataclass(frozen=True)
class CropOrNot:
    """Resize and crop every other picture, then go on."""

    resize: ResizeShortest
    crop: CropBetween
    then: Transform

    def __call__(self, view: View, generator: Generator) -> View:
        if torch.multinomial(
            torch.tensor([0.5, 0.5]), 1, generator=generator
        ):  # the coin of v2.RandomChoice
            view = self.crop(self.resize(view, generator), generator)
        return self.then(view, generator)


@dataclass(frozen=True)
class Jitter:
    """Resize to between ``low`` and ``high`` times what fits into a square, crop what is beyond it and pad what lacks
    (Ghiasi et al. 2021, as Mask2Former does it: one number says where both axes are cropped)."""

    side: int
    low: float
    high: float

    def __call__(self, view: View, generator: Generator) -> View:
        scale, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        view = view.resized(*self.size(*view.size, self.low + (self.high - self.low) * scale))
        top, left = (round(max(0, side - self.side) * place) for side in view.size)
        height, width = (min(self.side, side) for side in view.size)
        return view.cropped(top, left, height, width).padded(self.side, self.side)

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Height and width to be, before the crop."""
        fitting = min(self.side * scale / height, self.side * scale / width)
        return max(1, round(height * fitting)), max(1, round(width * fitting))


def training(imgsz: int) -> Transform:
    """Flip; resize, or resize, crop and resize."""
    resize = ResizeShortest([scaled(s, imgsz) for s in SHORTEST], scaled(LONGEST, imgsz))
    first = ResizeShortest([scaled(s, imgsz) for s in CROP_SHORTEST])
    least, most = (scaled(s, imgsz) for s in CROP)
    return FlipAnd(CropOrNot(first, CropBetween(least, most), resize))


def jittering(imgsz: int) -> Transform:
    """Flip; large scale jitter to a square, 1024/800 of ``imgsz``."""
    return FlipAnd(Jitter(scaled(SQUARE, imgsz), *JITTER))


def largest(height: int, width: int, imgsz: int, augment: str) -> list[tuple[int, int]]:
    """What a picture of this size becomes at most, as (height, width): under "lsj" the square; else as in validation
    and, under "detr", of the widest crop and of the highest. No draw is higher, wider or of more pixels than one of
    these."""
    if augment == "lsj":
        return [(scaled(SQUARE, imgsz), scaled(SQUARE, imgsz))]
    least, most = (
        scaled(s, imgsz) for s in CROP
    )  # every picture was resized to have both sides as long as most
    shapes = [(height, width), *([(least, most), (most, least)] if augment == "detr" else [])]
    return [resized(*shape, scaled(IMGSZ, imgsz), scaled(LONGEST, imgsz)) for shape in shapes]


def flipping(imgsz: int) -> Transform:
    """Flip and resize only: for pictures whose size means something, or a machine without time for more."""
    return FlipAnd(validation(imgsz))


def validation(imgsz: int) -> Transform:
    """Shortest side to ``imgsz``, longest at most 1333/800 of it."""
    return ResizeShortest([scaled(IMGSZ, imgsz)], scaled(LONGEST, imgsz))
