"""A batch of scenes seen by several cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from groupdetr.structures.tensor_dataclass import Movable, expect


@dataclass
class CameraImages(Movable):
    """A batch of scenes: V images of one size of each, and where every pixel looks."""

    pixels: Tensor  # [B,V,3,H,W] float, normalised as the backbone wants them
    image_to_lidar: Tensor  # [B,V,4,4] float32: (u*d, v*d, d, 1), pixel (u,v) at depth d in metres, to (x,y,z,1)
    elapsed: Tensor  # [B] seconds from the earlier images of a scene to the later ones; 0 where all are of one moment

    def __post_init__(self) -> None:
        b, v, *_ = self.pixels.shape
        expect(self.pixels.ndim == 5, f"pixels must be [B,V,3,H,W], not {tuple(self.pixels.shape)}")
        fits = self.image_to_lidar.shape == (b, v, 4, 4)
        expect(
            fits, f"image_to_lidar must be [{b},{v},4,4], not {tuple(self.image_to_lidar.shape)}"
        )
        expect(
            self.elapsed.shape == (b,), f"elapsed must be [{b}], not {tuple(self.elapsed.shape)}"
        )

    @classmethod
    def seen_through(cls, pixels: Tensor, lidar_to_image: Tensor, elapsed: Tensor) -> Self:
        """By the cameras' projections [B,V,4,4], which are inverted in double precision: far away, single is a matter
        of metres."""
        inverse = torch.linalg.inv(lidar_to_image.double())
        return cls(pixels, inverse.float(), elapsed)

    @property
    def beside(self) -> tuple[Tensor, Tensor]:
        """What an encoder is told beside the feature maps."""
        return self.image_to_lidar, self.elapsed

    def __len__(self) -> int:
        return len(self.pixels)
