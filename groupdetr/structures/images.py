"""A batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures.tensor_dataclass import TensorDataclass, require

# The images of all datasets are normalised by these constants. A backbone that was trained with
# others converts them itself (`InputNormalisation`).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Images(TensorDataclass):
    """A batch of images of different sizes, zero-padded at the right and bottom to the largest.

    >>> images = groupdetr.Images.from_list([torch.rand(3, 96, 128), torch.rand(3, 80, 96)])
    >>> images.pixels.shape
    torch.Size([2, 3, 96, 128])
    >>> images.padding[1, 80:].all()  # the lowest 16 rows of the second image
    tensor(True)
    """

    pixels: Tensor  # [B,3,H,W] float, normalised by the ImageNet mean and standard deviation
    padding: Tensor  # [B,H,W] bool, True where there is no image
    padded: bool = True  # False if no image has padding; attention then needs no mask

    def __post_init__(self) -> None:
        for name, x in (("pixels", self.pixels), ("padding", self.padding)):
            require(isinstance(x, Tensor), f"{name} must be a tensor, not {type(x).__name__}")
        shape = tuple(self.pixels.shape)
        require(len(shape) == 4 and shape[1] == 3, f"pixels must be [B,3,H,W], not {shape}")
        b, _, h, w = shape
        shape = tuple(self.padding.shape)
        require(shape == (b, h, w), f"padding has shape {shape}, but pixels need {(b, h, w)}")
        require(
            self.padding.dtype == torch.bool, "padding must be bool, True where there is no image"
        )

    @classmethod
    def from_list(cls, images: Sequence[Tensor]) -> Images:
        """Pad images [3,H_i,W_i] to the largest height and width of the batch.

        `ValueError` if there is no image, or if one has another shape.
        """
        expected = "images must be a list of one or more tensors [3,H,W]"
        require(isinstance(images, Sequence | Tensor), f"{expected}, not {type(images).__name__}")
        require(len(images) > 0, f"{expected}, and it is empty")
        for image in images:
            require(
                isinstance(image, Tensor), f"an image must be a tensor, not {type(image).__name__}"
            )
            shape = tuple(image.shape)
            require(len(shape) == 3 and shape[0] == 3, f"an image must be [3,H,W], not {shape}")
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
