"""Images normalised by ImageNet's constants, converted to the constants of another network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD


class InputNormalisation(nn.Module):
    """Images [B,3,H,W] normalised by ImageNet's constants -> normalised by ``mean`` and ``std``.

    Padding is zero before and after, as in the training of all DETRs. With ``bgr``, the images that
    come in have the channel order blue, green, red; those that go out are red, green, blue.
    """

    # [3,1,1] each: x * scale + shift is the image normalised by the other constants
    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        imagenet_mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64)
        imagenet_std = torch.tensor(IMAGENET_STD, dtype=torch.float64)
        new_mean = torch.tensor(mean, dtype=torch.float64)
        new_std = torch.tensor(std, dtype=torch.float64)
        # The pixel in [0,1] is x * imagenet_std + imagenet_mean.
        scale = imagenet_std / new_std
        shift = (imagenet_mean - new_mean) / new_std
        # The name of the network gives these constants, so a checkpoint does not have them.
        self.register_buffer("scale", scale.float().view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, padding: Tensor | None) -> Tensor:
        """``padding`` [...,H,W] bool is True where there is no image; None if there is no padding.

        Its leading axes are flattened to B.
        """
        if self.bgr:
            pixels = pixels.flip(1)
        converted = pixels * self.scale + self.shift
        if padding is None:
            return converted
        return converted.masked_fill(padding.flatten(0, -3).unsqueeze(1), 0.0)
