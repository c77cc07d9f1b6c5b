"""Masks as dot products of embeddings with features, and bilinear sampling of maps at points."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mask_logits(embedding: Tensor, pixels: Tensor) -> Tensor:
    """Return the logits of masks at P pixels or points: [...,Q,P].

    ``embedding`` [...,Q,C] are those of Q queries, ``pixels`` [...,C,P] the features. If an
    embedding has one number more, [...,Q,C+1], the last one is the bias of its mask, which is added
    at every pixel.
    """
    channels = pixels.shape[-2]
    if embedding.shape[-1] == channels:
        return embedding @ pixels
    return embedding[..., :channels] @ pixels + embedding[..., channels:]


def point_sample(maps: Tensor, points: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Sample maps [B,C,H,W] at points [B,P,2]: [B,C,P].

    ``points`` are x and y in [0,1]. The interpolation is bilinear. Outside of a map there are
    zeros, or with ``padding_mode="border"`` the nearest pixels of its border. This matters for
    points that are closer to the border than the centres of its pixels.
    """
    grid = (2 * points - 1).unsqueeze(1)  # [B,1,P,2] in [-1,1]
    sampled = F.grid_sample(
        maps, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False
    )
    return sampled.squeeze(2)
