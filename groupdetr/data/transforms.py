"""DETR's augmentation (Carion et al. 2020, appendix A.4), by torchvision.transforms.v2, at any scale."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

SHORTEST = tuple(range(480, 801, 32))  # pixels of the shortest side; validation takes the last
LONGEST = 1333
CROP_SHORTEST = (400, 500, 600)  # resized to one of these, then
CROP = (384, 600)  # cropped to a width and a height between these
IMGSZ = SHORTEST[-1]


def scaled(pixels: int, imgsz: int) -> int:
    """A length of DETR's menu for a validation size of ``imgsz`` instead of 800."""
    return max(1, round(pixels * imgsz / IMGSZ))


class ResizeShortest(v2.RandomShortestSize):
    """DETR's rule in whole pixels: the shortest side to one of ``min_size``, the longest at most ``max_size``.

    torchvision computes a ratio first, so that rounding can cost a pixel of the shortest side.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        size = self.min_size[int(torch.randint(len(self.min_size), ()))]
        return {"size": resized(height, width, size, self.max_size)}


def resized(height: int, width: int, size: int, most: int | None) -> tuple[int, int]:
    """Height and width with the shortest side at ``size``, or less where the longest would pass ``most``."""
    shortest, longest = min(height, width), max(height, width)
    if most is not None and longest / shortest * size > most:
        size = round(most * shortest / longest)
    size = max(1, size)
    other = max(1, int(size * longest / shortest))
    return (size, other) if height <= width else (other, size)


class RandomCropBetween(v2.Transform):
    """Crop to a width and a height each drawn from [least, min(side, most)]; a shorter side is kept."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least, self.most = least, most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
        sides = v2.query_size(flat_inputs)
        height, width = (self._draw(min(self.least, side), min(self.most, side)) for side in sides)
        top, left = self._draw(0, sides[0] - height), self._draw(0, sides[1] - width)
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, int]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)

    @staticmethod
    def _draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, ()))


def training(imgsz: int) -> v2.Transform:
    """Flip; resize, or resize, crop and resize."""
    resize = ResizeShortest([scaled(s, imgsz) for s in SHORTEST], scaled(LONGEST, imgsz))
    first = ResizeShortest([scaled(s, imgsz) for s in CROP_SHORTEST])
    crop = RandomCropBetween(*(scaled(s, imgsz) for s in CROP))
    either = v2.RandomChoice([resize, v2.Compose([first, crop, resize])])
    return v2.Compose([v2.RandomHorizontalFlip(), either])


def largest(height: int, width: int, imgsz: int, cropped: bool) -> list[tuple[int, int]]:
    """What a picture of this size becomes at most: (height, width) as in validation and, where it may be ``cropped`` as
    `training` does, of the widest crop and of the highest. No draw is higher, wider or of more pixels than one of
    these."""
    least, most = (scaled(s, imgsz) for s in CROP)  # every picture was resized to have both sides as long as most
    shapes = [(height, width), *([(least, most), (most, least)] if cropped else [])]
    return [resized(*shape, scaled(IMGSZ, imgsz), scaled(LONGEST, imgsz)) for shape in shapes]


def flipping(imgsz: int) -> v2.Transform:
    """Flip and resize only: for pictures whose size means something, or a machine without time for more."""
    return v2.Compose([v2.RandomHorizontalFlip(), validation(imgsz)])


def validation(imgsz: int) -> v2.Transform:
    """Shortest side to ``imgsz``, longest at most 1333/800 of it."""
    return ResizeShortest([scaled(IMGSZ, imgsz)], scaled(LONGEST, imgsz))
