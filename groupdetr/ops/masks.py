"""Bilinear sampling of feature maps and masks at points."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps [B,C,H,W] at points [B,P,2]: [B,C,P].

    ``points`` are x and y in [0,1]. The interpolation is bilinear, and maps are zero outside.
    """
    grid = (2 * points - 1).unsqueeze(1)  # [B,1,P,2] in [-1,1]
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.squeeze(2)
