"""A batch of scenes seen by several cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from groupdetr.structures.tensor_dataclass import TensorDataclass, require


@dataclass
class CameraImages(TensorDataclass):
    """A batch of scenes: V images of one size for each, and the geometry of their cameras.

    Boxes are in the frame of the lidar.

    >>> pixels = torch.rand(1, 6, 3, 90, 160)  # of one scene with six cameras
    >>> lidar_to_image = torch.eye(4).expand(1, 6, 4, 4)
    >>> images = groupdetr.CameraImages.from_projections(pixels, lidar_to_image, torch.zeros(1))

    `ValueError` if the shapes do not fit each other.
    """

    # [B,V,3,H,W] float, in the order blue, green, red, normalised by ImageNet's constants
    pixels: Tensor
    # [B,V,4,4] float32: maps (u*d, v*d, d, 1), pixel (u,v) at depth d in metres, to (x,y,z,1)
    image_to_lidar: Tensor
    # [B] seconds from the earlier frame of a scene to the later one; 0 if there is one frame
    elapsed: Tensor

    def __post_init__(self) -> None:
        for name in ("pixels", "image_to_lidar", "elapsed"):
            value = getattr(self, name)
            require(
                isinstance(value, Tensor), f"{name} must be a tensor, not {type(value).__name__}"
            )
        shape = tuple(self.pixels.shape)
        require(len(shape) == 5 and shape[2] == 3, f"pixels must be [B,V,3,H,W], not {shape}")
        b, v = shape[:2]
        shape = tuple(self.image_to_lidar.shape)
        require(shape == (b, v, 4, 4), f"image_to_lidar must be [{b},{v},4,4], not {shape}")
        shape = tuple(self.elapsed.shape)
        require(shape == (b,), f"elapsed must be [{b}], not {shape}")

    @classmethod
    def from_projections(cls, pixels: Tensor, lidar_to_image: Tensor, elapsed: Tensor) -> Self:
        """Create from the cameras' projections [B,V,4,4], which are inverted here.

        The inverse is computed in double precision: in single precision it is wrong by metres for
        distant points.
        """
        # A check of the result would wait for a GPU.
        inverse, _ = torch.linalg.inv_ex(
            lidar_to_image.double(), check_errors=not lidar_to_image.is_cuda
        )
        return cls(pixels, inverse.float(), elapsed)

    @property
    def padding(self) -> None:
        """None: all images of a batch have one size, so nothing is padded."""
        return None

    def __len__(self) -> int:
        return len(self.pixels)
