"""Sine embeddings: of places in the image that queries look at, and of the image's own pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _waves(angles: Tensor, channels: int, temperature: float) -> Tensor:
    """Angles [...] to ``channels`` features [...,channels/2,2], pairs of sine and cosine."""
    steps = torch.arange(0, channels, 2, dtype=torch.float32, device=angles.device)
    angles = angles.float().unsqueeze(-1) / temperature ** (steps / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1)


def sine_embedding(places: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Places [...,R] in [0,1] to [...,R*channels]: a point (x,y), one in space (x,y,z) or a box (cx,cy,w,h).

    The order of the result is **y, x, w, h** or y, x, z, as in Conditional DETR and all that follow it, so that it
    agrees with the image's embedding. The temperature is 10000 in every published decoder, whatever the image's is.
    """
    waves = _waves(places * (2 * math.pi), channels, temperature).flatten(-2)
    order = [1, 0, *range(2, places.shape[-1])]
    return waves[..., order, :].flatten(-2)


def image_embedding(
    padding: Tensor, channels: int, temperature: float = 10000.0, offset: float = 0.0
) -> Tensor:
    """Padding [B,H,W] to the position embedding [B,H,W,channels] of every pixel, order y, x (DETR, appendix A.4).

    Coordinates count the valid pixels from 1, add ``offset`` and are normalised by the last one, so padding neither
    stretches nor shifts them.
    """
    valid = (~padding).float()
    axes = []
    for axis in (1, 2):
        count = valid.cumsum(axis)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        angles = (count + offset) / (last + 1e-6) * (2 * math.pi)
        axes.append(_waves(angles, channels // 2, temperature).flatten(-2))
    return torch.cat(axes, dim=-1)


def views_embedding(shape: Sequence[int], channels: int, device: torch.device) -> Tensor:
    """Of every pixel of V views of height H and width W, ``shape`` being all three: [V,H,W,3*channels], order view,
    row, column. Counted and normalised as `image_embedding`, but of each axis **all sines, then all cosines**: PETR's
    code stacks them along another dimension than DETR's, and its weights are trained so."""
    axes = []
    for axis, size in enumerate(shape):
        count = torch.arange(1, size + 1, device=device).float()
        waves = _waves(count / (size + 1e-6) * (2 * math.pi), channels, 10000.0).mT.flatten(-2)
        axes.append(
            waves.view(*(size if i == axis else 1 for i in range(3)), channels).expand(*shape, -1)
        )
    return torch.cat(axes, dim=-1)
