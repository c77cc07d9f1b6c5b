"""A batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures.tensor_dataclass import Movable, expect


@dataclass
class Images(Movable):
    """A batch of images of different sizes, zero-padded at the right and bottom to the largest."""

    pixels: Tensor  # [B,3,H,W] float, normalised by the ImageNet mean and deviation
    padding: Tensor  # [B,H,W] bool, True where there is no image
    padded: bool = True  # False: known to be without padding; attention then needs no mask

    def __post_init__(self) -> None:
        b, _, h, w = self.pixels.shape
        expect(
            self.padding.shape == (b, h, w),
            f"padding {tuple(self.padding.shape)} does not fit {b}x{h}x{w}",
        )
        expect(
            self.padding.dtype == torch.bool, "padding must be bool, True where there is no image"
        )

    @classmethod
    def from_list(cls, images: Sequence[Tensor]) -> Images:
        """Pad images [3,H_i,W_i] to the largest height and width of the batch."""
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        pads = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        pixels = torch.stack([F.pad(image, pad) for image, pad in zip(images, pads)])
        padding = [
            F.pad(torch.zeros_like(x[0], dtype=torch.bool), pad, value=True)
            for x, pad in zip(images, pads)
        ]
        return cls(pixels, torch.stack(padding), any(map(any, pads)))

    @property
    def beside(self) -> tuple[Tensor, bool]:
        """What an encoder is told beside the feature maps."""
        return self.padding, self.padded

    def __len__(self) -> int:
        return len(self.pixels)
