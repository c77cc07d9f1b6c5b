"""Sine position embeddings of points, of boxes, and of the pixels of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _sine_cosine(angles: Tensor, channels: int, temperature: float) -> Tensor:
    """Return sines and cosines of angles [...] at channels/2 frequencies: [...,channels/2,2]."""
    steps = torch.arange(0, channels, 2, dtype=torch.float32, device=angles.device)
    angles = angles.float().unsqueeze(-1) / temperature ** (steps / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1)


def sine_embedding(coordinates: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Embed coordinates [...,R] in [0,1]: [...,R*channels].

    The coordinates are a point (x, y), a 3D point (x, y, z) or a box (cx, cy, w, h). The result is
    in the order **y, x, w, h** or y, x, z, as in Conditional DETR and all its successors, so that
    it agrees with `image_embedding`. The temperature is 10000 in every published decoder, whatever
    the temperature of the image is.
    """
    # Not by an index [1, 0, ...]: the host would wait for a GPU to copy the list.
    in_order = coordinates[..., :2].flip(-1)
    if coordinates.shape[-1] > 2:
        in_order = torch.cat([in_order, coordinates[..., 2:]], dim=-1)
    return _sine_cosine(in_order * (2 * math.pi), channels, temperature).flatten(-3)


def image_embedding(
    padding: Tensor, channels: int, temperature: float = 10000.0, offset: float = 0.0
) -> Tensor:
    """Return the position embedding of every pixel, [B,H,W,channels] (DETR, appendix A.4).

    ``padding`` [B,H,W] bool is True where there is no image. The first half of the channels embeds
    y and the second half x. Coordinates count the valid pixels from 1. ``offset`` is added to them,
    and they are divided by the last one, so padding neither stretches nor shifts them.
    """
    valid = (~padding).float()
    embedded = []
    for axis in (1, 2):
        count = valid.cumsum(axis)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        angles = (count + offset) / (last + 1e-6) * (2 * math.pi)
        embedded.append(_sine_cosine(angles, channels // 2, temperature).flatten(-2))
    return torch.cat(embedded, dim=-1)


def views_embedding(shape: Sequence[int], channels: int, device: torch.device) -> Tensor:
    """Return the position embedding of every pixel of several camera views, [V,H,W,3*channels].

    ``shape`` is (V, H, W). The channels embed the view, then the row, then the column. They are
    counted and normalised as in `image_embedding`, but **all sines come before all cosines** of an
    axis: PETR's code stacks them along another dimension than DETR's, and its published weights
    are trained with that.
    """
    embedded = []
    for axis, size in enumerate(shape):
        count = torch.arange(1, size + 1, device=device).float()
        angles = count / (size + 1e-6) * (2 * math.pi)
        # [size,channels/2,2] -> [size,2,channels/2] -> [size,channels]
        features = _sine_cosine(angles, channels, 10000.0).mT.flatten(-2)
        # Repeat the features of this axis along the two others.
        broadcast_shape = [1, 1, 1, channels]
        broadcast_shape[axis] = size
        embedded.append(features.view(broadcast_shape).expand(*shape, -1))
    return torch.cat(embedded, dim=-1)
