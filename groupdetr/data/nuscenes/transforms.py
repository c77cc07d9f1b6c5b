"""PETR's augmentation, at any size: pictures resized, cropped and flipped, the world turned and scaled about the lidar.

One draw holds for all views of a sample, those of an earlier frame included. Pictures stay bytes; whatever happens to
them happens to ``lidar_to_image`` too, and what happens to the world is undone in it, so that every object stays on
its pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator

from groupdetr.data.nuscenes.geometry import about_z, embedded
from groupdetr.data.records import Floats

IMGSZ = (320, 800)  # height and width that pictures of 900 x 1600 become
ZOOM = (
    0.94,
    1.25,
)  # times the scale at which a picture fills IMGSZ: 0.47 to 0.625 of 1600 x 900 for 800 x 320
TURN = 0.3925  # radians at most, either way
SCALE = (0.95, 1.05)  # of the world


@dataclass(frozen=True)
class Crop:
    """Where a picture of one size goes: scaled by ``scale``, then ``left`` and ``top`` pixels are cut off (or, where
    negative, black is put there), up to ``size``; then it may be flipped."""

    scale: float
    left: int
    top: int
    size: tuple[int, int]  # height and width
    flip: bool = False

    def matrix(self) -> Floats:
        """[4,4] what it does to (u d, v d, d, 1)."""
        a = np.array([[self.scale, 0, -self.left], [0, self.scale, -self.top], [0, 0, 1]])
        mirror = np.array([[-1, 0, self.size[1]], [0, 1, 0], [0, 0, 1]])
        return embedded(mirror @ a if self.flip else a)

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture [H,W,3], bicubic as published, black where there is none.

        Only what is kept is resized, which takes half the time; here and there a byte is rounded the other way.
        """
        height, width = (max(1, int(side * self.scale)) for side in pixels.shape[:2])
        x0, y0 = max(0, self.left), max(0, self.top)
        x1, y1 = min(width, self.left + self.size[1]), min(height, self.top + self.size[0])
        wide, high = pixels.shape[1] / width, pixels.shape[0] / height
        box = (x0 * wide, y0 * high, x1 * wide, y1 * high)
        kept = Image.fromarray(pixels).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box)
        whole = np.zeros((*self.size, 3), dtype=np.uint8)
        whole[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left] = np.asarray(kept)
        return whole[:, ::-1] if self.flip else whole


@dataclass(frozen=True)
class Augmentation:
    """What is done to all pictures of a sample, and to its world. As it stands: what is done in a test."""

    zoom: float = 1.0  # times the scale at which a picture fills the output
    left: float = 0.5  # what is cut off at the left, as a share of all that is cut off at the sides
    flip: bool = False
    turn: float = 0.0  # radians, counter-clockwise
    scale: float = 1.0

    def crop(self, size: tuple[int, int], output: tuple[int, int]) -> Crop:
        """For a picture of (height, width) ``size``. The bottom is kept: the sky tells least."""
        scale = self.zoom * max(output[0] / size[0], output[1] / size[1])
        height, width = (int(side * scale) for side in size)
        left = int(self.left * max(0, width - output[1]))
        return Crop(scale, left, height - output[0], output, self.flip)

    def world(self) -> Floats:
        """[4,4] from where things are to where they are put."""
        return embedded(self.scale * about_z(self.turn))

    def views(self, lidar_to_image: Floats) -> Floats:
        """[V,4,4] for the world as it is put. Depths along a ray keep their length, as published."""
        return lidar_to_image @ np.linalg.inv(self.world())

    def boxes(self, boxes: Floats) -> Floats:
        """[T,9]: centres, sizes, yaws and velocities as they are put."""
        turned, spin = boxes.copy(), self.world()[:3, :3]
        turned[:, :3] = boxes[:, :3] @ spin.T
        turned[:, 3:6] *= self.scale
        turned[:, 6] += self.turn
        turned[:, 7:9] = boxes[:, 7:9] @ spin[:2, :2].T
        return turned


Augment = Callable[[Generator], Augmentation]


def published(generator: Generator) -> Augmentation:
    """As PETR and PETRv2 are trained at 800 x 320."""
    zoom, left, turn, scale, coin = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    return Augmentation(
        between(*ZOOM, zoom), left, coin < 0.5, between(-TURN, TURN, turn), between(*SCALE, scale)
    )


def unchanged(generator: Generator) -> Augmentation:
    """As in a test: the picture fills the output, and the world is left alone."""
    del generator
    return Augmentation()


def between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
