"""GridMask (Chen et al., arXiv 2001.04086): a regular pattern of squares of the images is hidden in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridMask(nn.Module):
    """Images [B,3,H,W] -> the same; in training, with a ``probability``, without the squares of one grid for all.

    As in PETR's code, which never turns the grid. ``share``: of the side of a square in the period.
    """

    def __init__(self, probability: float, share: float = 0.5) -> None:
        super().__init__()
        self.probability, self.share = probability, share

    def forward(self, pixels: Tensor) -> Tensor:
        if not (self.training and self.probability):
            return pixels
        happens = torch.rand((), device=pixels.device) < self.probability
        return pixels.masked_fill(self.squares(pixels) & happens, 0.0)

    def squares(self, pixels: Tensor) -> Tensor:
        """[H,W] bool: between stripes of rows and of columns, which are seen."""
        height, width = pixels.shape[-2:]
        period = torch.randint(2, max(height, 3), (), device=pixels.device)
        side = (period * self.share + 0.5).floor().clamp(min=1).minimum(period - 1)
        return ~(stripes(height, period, side).unsqueeze(1) | stripes(width, period, side))


def stripes(size: int, period: Tensor, side: Tensor) -> Tensor:
    """[size] bool: ``side`` of every ``period`` pixels, beginning anywhere, in the middle of a canvas half as large
    again, on which as many whole periods are."""
    canvas = int(1.5 * size)
    before = (canvas - size) // 2
    first = (torch.rand((), device=period.device) * period).floor()
    place = torch.arange(before, before + size, device=period.device) - first
    return (place >= 0) & (place % period < side) & (place // period < canvas // period)
