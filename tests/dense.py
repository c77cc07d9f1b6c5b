"""Masks as arrays of their pictures' size, put together pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from groupdetr.data.segmentations import Drawn
from groupdetr.structures.masks import Bitmaps


def dense(mask: Drawn, size: tuple[int, int]) -> np.ndarray:
    """[H,W] bool."""
    (left, top, width, height), pixels = mask
    assert pixels.shape == (height, width)
    assert left >= 0
    assert top >= 0
    whole = np.zeros(size, dtype=bool)
    whole[top : top + height, left : left + width] = pixels
    assert whole.sum() == pixels.sum(), "the window reaches out of the picture"
    return whole


def dense_masks(masks: Bitmaps, size: tuple[int, int]) -> Tensor:
    """[T,H,W] bool."""
    areas = masks.windows[:, 2:].prod(1).tolist()
    assert masks.pixels[-1] == 0
    parts = masks.pixels[:-1].split(areas)
    whole = [
        dense(Drawn(tuple(window), part.view(window[3], window[2]).numpy().astype(bool)), size)
        for part, window in zip(parts, masks.windows.tolist())
    ]
    return torch.from_numpy(np.array(whole, dtype=bool).reshape(-1, *size))
