"""Random changes of brightness, contrast, saturation and hue.

The functions for this are torchvision's. They are in a module of their own, because the import of
torchvision takes longer than that of PyTorch, and few trainings change colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from groupdetr.data.transforms import AugmentedImage, Transform


@dataclass(frozen=True)
class PhotometricDistortion:
    """Apply ``first``, then change brightness, contrast, saturation and hue, each with p = 0.5.

    The changes and their ranges are those of SSD (Liu et al. 2016), as most recipes with boxes have
    them: contrast is changed before or after the colours. Boxes do not move.
    """

    first: Transform

    def __call__(self, image: AugmentedImage, generator: Generator) -> AugmentedImage:
        image = self.first(image, generator)
        # All numbers are drawn, so that the number of draws does not depend on them.
        apply = torch.rand(5, generator=generator).tolist()
        factors = torch.rand(4, generator=generator).tolist()
        low_high = ((0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05))
        brightness, contrast, saturation, hue = (
            low + (high - low) * factor for factor, (low, high) in zip(factors, low_high)
        )
        changes: list[tuple[Callable[[Tensor, float], Tensor], float]] = []
        if apply[0] < 0.5:
            changes.append((F.adjust_brightness, brightness))
        if apply[1] < 0.5:
            changes.append((F.adjust_saturation, saturation))
        if apply[2] < 0.5:
            changes.append((F.adjust_hue, hue))
        if apply[3] < 0.5:
            before_colours = int(apply[0] < 0.5)  # after the brightness, if it is changed
            position = before_colours if apply[4] < 0.5 else len(changes)
            changes.insert(position, (F.adjust_contrast, contrast))
        pixels = image.image
        for change, amount in changes:
            pixels = change(pixels, amount)
        return replace(image, image=pixels)
