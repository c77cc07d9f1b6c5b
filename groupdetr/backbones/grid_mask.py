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
        hidden = self.training and torch.rand(()) < self.probability
        return pixels.masked_fill(self.squares(pixels), 0.0) if hidden else pixels

    def squares(self, pixels: Tensor) -> Tensor:
        """[H,W] bool, on the images' device."""
        height, width = pixels.shape[-2:]
        period = int(torch.randint(2, max(height, 3), ()))
        side = min(max(int(period * self.share + 0.5), 1), period - 1)
        # stripes are seen, and begin anywhere; they are cut from a canvas half as large again
        rows, columns = (stripes(size, period, side) for size in (height, width))
        return (~(rows.unsqueeze(1) | columns)).to(pixels.device, non_blocking=True)


def stripes(size: int, period: int, side: int) -> Tensor:
    """[size] bool: ``side`` of every ``period`` pixels, beginning anywhere, in the middle of a canvas half as large
    again, on which as many whole periods are."""
    canvas = torch.zeros(int(1.5 * size), dtype=torch.bool)
    first = int(torch.randint(period, ()))
    for i in range(len(canvas) // period):
        canvas[period * i + first : period * i + first + side] = True
    before = (len(canvas) - size) // 2
    return canvas[before : before + size]
