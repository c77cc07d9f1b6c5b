"""GridMask augmentation (Chen et al., arXiv 2001.04086): hides a regular grid of squares."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Images [B,3,H,W] -> the same images, in training with hidden squares.

    With the given ``probability``, the pixels of a random grid of squares become zero, the same
    grid in all images of the batch. The grid is never rotated, as in PETR's code. ``ratio`` is the
    width of the visible stripes between the squares, relative to the period of the grid.
    """

    def __init__(self, probability: float, ratio: float = 0.5) -> None:
        super().__init__()
        self.probability = probability
        self.ratio = ratio

    def forward(self, pixels: Tensor) -> Tensor:
        if not (self.training and self.probability):
            return pixels
        # This is a tensor and not a bool, so that the host does not wait for the GPU.
        is_applied = torch.rand((), device=pixels.device) < self.probability
        return pixels.masked_fill(self.squares(pixels) & is_applied, 0.0)

    def squares(self, pixels: Tensor) -> Tensor:
        """Draw a grid and return [H,W] bool, True for hidden pixels.

        A pixel is hidden if it is in no visible stripe of rows and in none of columns.
        """
        height, width = pixels.shape[-2:]
        period = torch.randint(2, max(height, 3), (), device=pixels.device)
        # At least one pixel of a period is visible, and at least one is hidden.
        side = (period * self.ratio + 0.5).floor().clamp(min=1).minimum(period - 1)
        rows = stripes(height, period, side).unsqueeze(1)
        columns = stripes(width, period, side)
        return ~(rows | columns)


def stripes(size: int, period: Tensor, side: Tensor) -> Tensor:
    """Return [size] bool, True for ``side`` of every ``period`` pixels, with a random phase.

    It is cropped from the centre of a canvas 1.5 times as large that holds whole periods only, as
    in PETR's code.
    """
    canvas = int(1.5 * size)
    crop_offset = (canvas - size) // 2
    phase = (torch.rand((), device=period.device) * period).floor()
    position = torch.arange(crop_offset, crop_offset + size, device=period.device) - phase
    in_stripe = position % period < side
    # Before the phase and after the last whole period there are no stripes.
    in_whole_period = (position >= 0) & (position // period < canvas // period)
    return in_whole_period & in_stripe
