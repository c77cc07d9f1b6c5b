"""Maps looked at between their pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Maps [B,C,H,W] at points [B,P,2], x and y in [0,1] -> [B,C,P]. Bilinear; beyond the edge is zero."""
    grid = (2 * points - 1).unsqueeze(1)
    return F.grid_sample(
        maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    ).squeeze(2)
