"""PETR's augmentation at any image size.

Images are resized, cropped and flipped, and the world is rotated and scaled about the lidar
(``ResizeCropFlipImage`` and ``GlobalRotScaleTransImage`` in PETR's code). One random draw applies
to all images of a sample, also to those of an earlier frame. Images stay bytes. Every change of an
image is also applied to its ``lidar_to_image``, and the inverse of every change of the world, so
all objects stay on their pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator

from groupdetr.data.nuscenes.geometry import rotation_about_z, to_homogeneous
from groupdetr.data.records import Floats

IMAGE_SIZE = (320, 800)  # height and width to which PETR brings images of 900 x 1600
# Range of the resize factor, relative to the scale at which an image fills the output. For 800 x
# 320 these are PETR's scales, 0.47 to 0.625 of 1600 x 900.
RESIZE_RANGE = (0.94, 1.25)
MAX_ROTATION = 0.3925  # radians, in either direction
SCALE_RANGE = (0.95, 1.05)  # of the world


@dataclass(frozen=True)
class ResizeCropFlip:
    """The transform of one image: resize by ``scale``, crop to ``size``, then flip.

    The crop begins ``left`` and ``top`` pixels inside the resized image. A negative offset adds
    black pixels.
    """

    scale: float
    left: int
    top: int
    size: tuple[int, int]  # height and width of the output
    flip: bool = False  # True if the output is mirrored horizontally

    def matrix(self) -> Floats:
        """Return the matrix [4,4] that it applies to (u d, v d, d, 1)."""
        matrix = np.array([[self.scale, 0, -self.left], [0, self.scale, -self.top], [0, 0, 1]])
        if self.flip:
            mirror = np.array([[-1, 0, self.size[1]], [0, 1, 0], [0, 0, 1]])
            matrix = mirror @ matrix
        return to_homogeneous(matrix)

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the transformed image [H',W',3] of an image [H,W,3], bicubic as in PETR's code.

        Only the visible part is resized, which takes half the time. A few bytes are rounded
        differently than if the whole image were resized.
        """
        height = max(1, int(pixels.shape[0] * self.scale))
        width = max(1, int(pixels.shape[1] * self.scale))
        # The visible part, in pixels of the resized image.
        x0 = max(0, self.left)
        y0 = max(0, self.top)
        x1 = min(width, self.left + self.size[1])
        y1 = min(height, self.top + self.size[0])
        # The same in pixels of the original.
        x_ratio = pixels.shape[1] / width
        y_ratio = pixels.shape[0] / height
        box = (x0 * x_ratio, y0 * y_ratio, x1 * x_ratio, y1 * y_ratio)
        image = Image.fromarray(pixels)
        visible = image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box)
        output = np.zeros((*self.size, 3), dtype=np.uint8)
        rows = slice(y0 - self.top, y1 - self.top)
        columns = slice(x0 - self.left, x1 - self.left)
        output[rows, columns] = np.asarray(visible)
        return output[:, ::-1] if self.flip else output


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a sample: of all its images, and of its world.

    The default values are those of validation.
    """

    resize: float = 1.0  # relative to the scale at which an image fills the output
    crop_left: float = 0.5  # fraction of the cropped width that is cropped at the left
    flip: bool = False
    rotation: float = 0.0  # of the world, radians, counter-clockwise
    scale: float = 1.0  # of the world

    def image_transform(self, size: tuple[int, int], output: tuple[int, int]) -> ResizeCropFlip:
        """Return the transform of an image of (height, width) ``size`` to size ``output``.

        It cuts off the top of the image, where there is only sky, and keeps the bottom.
        """
        scale = self.resize * max(output[0] / size[0], output[1] / size[1])
        height = int(size[0] * scale)
        width = int(size[1] * scale)
        left = int(self.crop_left * max(0, width - output[1]))
        return ResizeCropFlip(scale, left, height - output[0], output, self.flip)

    def world_matrix(self) -> Floats:
        """Return the matrix [4,4] that rotates and scales the world about the lidar."""
        return to_homogeneous(self.scale * rotation_about_z(self.rotation))

    def transform_projections(self, lidar_to_image: Floats) -> Floats:
        """Return the projections [V,4,4] from the transformed world to the same pixels.

        As in PETR's code, the depth along a ray is not scaled with the world.
        """
        return lidar_to_image @ np.linalg.inv(self.world_matrix())

    def transform_boxes(self, boxes: Floats) -> Floats:
        """Return boxes [T,9] in the transformed world."""
        matrix = self.world_matrix()[:3, :3]
        transformed = boxes.copy()
        transformed[:, :3] = boxes[:, :3] @ matrix.T
        transformed[:, 3:6] *= self.scale
        transformed[:, 6] += self.rotation
        transformed[:, 7:9] = boxes[:, 7:9] @ matrix[:2, :2].T
        return transformed


Augment = Callable[[Generator], Augmentation]


def petr_augmentation(generator: Generator) -> Augmentation:
    """Draw an augmentation as PETR and PETRv2 do in training at 800 x 320."""
    draws = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    resize, crop_left, rotation, scale, flip = draws
    return Augmentation(
        resize=_interpolate(*RESIZE_RANGE, resize),
        crop_left=crop_left,
        flip=flip < 0.5,
        rotation=_interpolate(-MAX_ROTATION, MAX_ROTATION, rotation),
        scale=_interpolate(*SCALE_RANGE, scale),
    )


def no_augmentation(generator: Generator) -> Augmentation:
    """Return the augmentation of validation: the image fills the output, the world is unchanged."""
    return Augmentation()


def _interpolate(low: float, high: float, fraction: float) -> float:
    return low + (high - low) * fraction
