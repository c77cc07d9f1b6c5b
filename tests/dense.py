"""Cropped masks as dense arrays of the size of their image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from groupdetr.data.segmentations import CroppedMask
from groupdetr.structures.masks import CroppedMasks


def dense(mask: CroppedMask, size: tuple[int, int]) -> np.ndarray:
    """Return one mask as [H,W] bool."""
    (left, top, width, height), pixels = mask
    assert pixels.shape == (height, width)
    assert left >= 0
    assert top >= 0
    full = np.zeros(size, dtype=bool)
    full[top : top + height, left : left + width] = pixels
    assert full.sum() == pixels.sum(), "the window reaches out of the image"
    return full


def dense_masks(masks: CroppedMasks, size: tuple[int, int]) -> Tensor:
    """Return T masks as [T,H,W] bool."""
    areas = masks.windows[:, 2:].prod(1).tolist()
    assert masks.pixels[-1] == 0
    parts = masks.pixels[:-1].split(areas)
    full = []
    for part, (left, top, width, height) in zip(parts, masks.windows.tolist()):
        pixels = part.view(height, width).numpy().astype(bool)
        full.append(dense(CroppedMask((left, top, width, height), pixels), size))
    return torch.from_numpy(np.array(full, dtype=bool).reshape(-1, *size))
