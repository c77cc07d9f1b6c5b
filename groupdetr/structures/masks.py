"""Masks: those that queries say, evaluated where somebody looks, and those of objects, of which windows are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.ops.boxes import xyxy_to_cxcywh
from groupdetr.ops.masks import sample
from groupdetr.structures.tensor_dataclass import Movable, expect

STRIDE = 4  # of the pixels that masks are told of, in pixels of the image
SLAB = 1 << 22  # (object, point) pairs that are looked up at once


@dataclass
class Canvas(Movable):
    """What masks are dot products with: the pixels of a batch of images."""

    pixels: Tensor  # [B,C,h,w] of the padded images, at a quarter of their size
    sizes: Tensor  # [B,2] int64: height and width of each image without its padding, in pixels
    points: Tensor | None = (
        None  # [B,P,2] x, y in [0,1] of the padded image: where masks are compared
    )
    sampled: Tensor | None = None  # [B,C,P] the pixels there

    def with_points(self, count: int, generator: torch.Generator | None = None) -> Canvas:
        """With ``count`` random points, all groups and layers the same, unless they were drawn before."""
        if self.points is not None:
            return self
        points = torch.rand(
            len(self.pixels), count, 2, generator=generator, device=self.pixels.device
        )
        return replace(self, points=points, sampled=sample(self.pixels.float(), points))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the padded images, in pixels."""
        return STRIDE * self.pixels.shape[2], STRIDE * self.pixels.shape[3]


@dataclass
class Masks(Movable):
    """What queries say: for each an embedding, whose dot product with every pixel is the logit of its mask.

    Resizing and sampling are linear, so they are done to the pixels, once for all queries, and K groups of N queries
    never make K*N maps. Axes between B and C, written ..., may be any.
    """

    embedding: Tensor  # [B,...,C]
    canvas: Canvas

    def full(self) -> Tensor:
        """Logits at the canvas's own size: [B,...,h,w]."""
        return self.on(self.canvas.pixels)

    def resized(self, shape: Sequence[int]) -> Tensor:
        """Logits at another size, bilinear: [B,...,*shape]."""
        return self.on(
            F.interpolate(self.canvas.pixels, tuple(shape), mode="bilinear", align_corners=False)
        )

    def at(self, points: Tensor) -> Tensor:
        """Logits at points [B,P,2], x and y in [0,1] of the padded image: [B,...,P]."""
        return self.on(sample(self.canvas.pixels, points))

    def on(self, pixels: Tensor) -> Tensor:
        """Logits on pixels [B,C,*shape]: [B,...,*shape]."""
        logits = self.embedding.flatten(1, -2) @ pixels.flatten(2)
        return logits.view(*self.embedding.shape[:-1], *pixels.shape[2:])

    def boxes(self) -> Tensor:
        """The tightest boxes around the masks at the canvas's own size: [B,...,4] cx,cy,w,h in [0,1] of the unpadded
        image, zeros around empty masks. For a few queries: it makes all their maps."""
        inside = self.full() > 0
        rows, columns = (torch.arange(n, device=inside.device) * STRIDE for n in inside.shape[-2:])
        height, width = self.canvas.sizes.view(-1, *[1] * (inside.ndim - 3), 2).split(
            1, -1
        )  # [B,...,1] each
        inside &= (rows < height).unsqueeze(-1) & (columns < width).unsqueeze(-2)
        (x0, x1), (y0, y1) = (extent(inside.any(axis)) for axis in (-2, -1))
        corners = STRIDE * torch.stack([x0, y0, x1, y1], -1) / torch.cat([width, height] * 2, -1)
        return xyxy_to_cxcywh(corners.clamp(max=1))


@dataclass
class Bitmaps(Movable):
    """T masks of the objects of one image: of each only the window that it lies in, so 300 take little more memory
    than the image."""

    pixels: Tensor  # [A] uint8, 0 or 1: the windows row by row, one after the other, and a zero
    windows: Tensor  # [T,4] int64: left, top, width and height in pixels of the image

    def __post_init__(self) -> None:
        expect(self.windows.ndim == 2 and self.windows.shape[1] == 4, "windows must be [T,4]")
        expect(
            self.pixels.ndim == 1 and len(self.pixels) > 0,
            "pixels must be [A], the last of them zero",
        )

    @classmethod
    def of(cls, masks: Tensor) -> Bitmaps:
        """From [T,H,W], bool or numbers that are not zero inside."""
        windows = (
            torch.stack([window(mask) for mask in masks])
            if len(masks)
            else masks.new_zeros(0, 4).long()
        )
        cut = [
            mask[top : top + height, left : left + width].ne(0).flatten()
            for mask, (left, top, width, height) in zip(masks, windows.tolist())
        ]
        return cls(torch.cat([*cut, masks.new_zeros(1, dtype=torch.bool)]).to(torch.uint8), windows)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, which: Sequence[int]) -> Bitmaps:
        """Some of them."""
        starts, windows = self.starts[list(which)].tolist(), self.windows[list(which)]
        cut = [self.pixels[i : i + w * h] for i, (_, _, w, h) in zip(starts, windows.tolist())]
        return Bitmaps(torch.cat([*cut, self.pixels[-1:]]), windows)

    @property
    def starts(self) -> Tensor:
        """[T] where every window begins."""
        areas = self.windows[:, 2] * self.windows[:, 3]
        return areas.cumsum(0) - areas

    def at(self, points: Tensor) -> Tensor:
        """[T,P] float32, bilinear, at points [P,2] x and y in pixels of the image; outside of the window is zero."""
        size = max(1, SLAB // max(1, len(points)))
        parts = [
            self._at(points, rows)
            for rows in torch.arange(len(self), device=points.device).split(size)
        ]
        return torch.cat(parts) if len(self) else points.new_zeros(0, len(points))

    def _at(self, points: Tensor, rows: Tensor) -> Tensor:
        corner = (points - 0.5).floor()
        beside = points - 0.5 - corner  # [P,2] how far towards the next pixel
        total = points.new_zeros(len(rows), len(points))
        for x, y in product((0, 1), (0, 1)):
            share = (beside[:, 0] if x else 1 - beside[:, 0]) * (
                beside[:, 1] if y else 1 - beside[:, 1]
            )
            total += share * self._pixel(
                corner.long() + torch.tensor([x, y], device=corner.device), rows
            )
        return total

    def _pixel(self, places: Tensor, rows: Tensor) -> Tensor:
        """[R,P] of objects ``rows`` at whole places [P,2]."""
        left, top, width, height = self.windows[rows].unsqueeze(-1).unbind(1)  # [R,1] each
        x, y = places[:, 0] - left, places[:, 1] - top
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return self.pixels[(self.starts[rows, None] + y * width + x).masked_fill_(~inside, -1)]


def extent(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [...,n]: the first that is inside, and the last plus one; both zero where none is."""
    some, length = inside.any(-1), inside.shape[-1]
    first, after = inside.int().argmax(-1), length - inside.flip(-1).int().argmax(-1)
    return first * some, after * some


def window(mask: Tensor) -> Tensor:
    """[H,W] to the left, top, width and height of what is inside, [4] int64; zeros of an empty mask."""
    rows, columns = mask.ne(0).any(1).nonzero().flatten(), mask.ne(0).any(0).nonzero().flatten()
    if not len(rows):
        return torch.zeros(4, dtype=torch.int64, device=mask.device)
    top, left = rows[0], columns[0]
    return torch.stack([left, top, columns[-1] - left + 1, rows[-1] - top + 1])
