"""A batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures.tensor_dataclass import TensorDataclass, require


@dataclass
class Images(TensorDataclass):
    """A batch of images of different sizes, zero-padded at the right and bottom to the largest.

    Example::

        images = Images.from_list([torch.rand(3, 96, 128), torch.rand(3, 80, 96)])
        images.pixels.shape  # [2, 3, 96, 128]
        images.padding[1, 80:].all()  # True
    """

    pixels: Tensor  # [B,3,H,W] float, normalised by the ImageNet mean and standard deviation
    padding: Tensor  # [B,H,W] bool, True where there is no image
    padded: bool = True  # False if no image has padding; attention then needs no mask

    def __post_init__(self) -> None:
        b, _, h, w = self.pixels.shape
        shape = tuple(self.padding.shape)
        require(shape == (b, h, w), f"padding has shape {shape}, but pixels need {(b, h, w)}")
        require(
            self.padding.dtype == torch.bool, "padding must be bool, True where there is no image"
        )

    @classmethod
    def from_list(cls, images: Sequence[Tensor]) -> Images:
        """Pad images [3,H_i,W_i] to the largest height and width of the batch."""
        height = max(image.shape[1] for image in images)
        width = max(image.shape[2] for image in images)
        pixels, padding = [], []
        padded = False
        for image in images:
            pad = (0, width - image.shape[2], 0, height - image.shape[1])  # right and bottom
            no_padding = torch.zeros_like(image[0], dtype=torch.bool)
            pixels.append(F.pad(image, pad))
            padding.append(F.pad(no_padding, pad, value=True))
            padded = padded or any(pad)
        return cls(torch.stack(pixels), torch.stack(padding), padded)

    def __len__(self) -> int:
        return len(self.pixels)
