"""Masks of objects are kept in windows, and looked at between their pixels as if they were whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures import masks as masks_module
from groupdetr.structures.masks import Bitmaps
from tests.dense import dense_masks

SIDES = st.integers(1, 12)
COUNTS = st.integers(0, 5)
SHARES = st.sampled_from([0.0, 0.05, 0.5, 1.0])


def some(count: int, height: int, width: int, share: float, seed: int = 0) -> Tensor:
    """[T,H,W] bool, of noise."""
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)) < share


def centres(height: int, width: int) -> Tensor:
    """[H*W,2] x, y of the pixels' centres."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def sampled(masks: Tensor, points: Tensor) -> Tensor:
    """[T,P] of [T,H,W] by torch, which wants places from -1 to 1."""
    size = torch.tensor([masks.shape[2], masks.shape[1]], dtype=torch.float64)
    grid = (2 * points.double() / size - 1).expand(len(masks), 1, -1, 2)
    return F.grid_sample(masks[:, None].double(), grid, "bilinear", "zeros", align_corners=False)[
        :, 0, 0
    ]


@given(count=COUNTS, height=SIDES, width=SIDES, share=SHARES)
def test_at_the_centres_of_pixels_a_mask_is_what_it_was_made_of(
    count: int, height: int, width: int, share: float
) -> None:
    masks = some(count, height, width, share)
    bitmaps = Bitmaps.of(masks)
    assert len(bitmaps) == count
    assert torch.equal(dense_masks(bitmaps, (height, width)), masks)
    assert torch.equal(bitmaps.at(centres(height, width)).view(count, height, width), masks.float())


@given(count=st.integers(1, 5), height=SIDES, width=SIDES, share=SHARES, seed=st.integers(0, 99))
def test_between_pixels_and_beyond_edges_a_mask_is_sampled_as_if_it_were_whole(
    count: int, height: int, width: int, share: float, seed: int
) -> None:
    """Also exactly on the edge, on corners of pixels, and outside."""
    generator = torch.Generator().manual_seed(seed)
    anywhere = (torch.rand(40, 2, generator=generator) * 1.4 - 0.2) * torch.tensor([width, height])
    y, x = torch.meshgrid(
        torch.arange(-1, height + 2.0), torch.arange(-1, width + 2.0), indexing="ij"
    )
    points = torch.cat([anywhere, torch.stack([x, y], -1).view(-1, 2)])
    masks = some(count, height, width, share, seed)
    torch.testing.assert_close(
        Bitmaps.of(masks).at(points).double(), sampled(masks, points), rtol=0, atol=2e-6
    )


def test_padding_of_the_batch_is_empty_like_the_rest_around_a_mask() -> None:
    masks = some(3, 5, 7, 0.6)
    padded = F.pad(masks, (0, 9, 0, 4))
    points = torch.rand(200, 2) * torch.tensor([16.0, 9.0])
    torch.testing.assert_close(
        Bitmaps.of(masks).at(points).double(), sampled(padded, points), rtol=0, atol=2e-6
    )


def test_looking_up_in_slabs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmaps, points = Bitmaps.of(some(7, 9, 8, 0.5)), 10 * torch.rand(30, 2)
    whole = bitmaps.at(points)
    monkeypatch.setattr(masks_module, "SLAB", 60)
    assert torch.equal(bitmaps.at(points), whole)


def test_no_objects_are_looked_up_without_trouble() -> None:
    assert Bitmaps.of(torch.zeros(0, 4, 5)).at(torch.rand(6, 2)).shape == (0, 6)
    assert Bitmaps.of(torch.zeros(2, 4, 5)).at(torch.rand(6, 2)).tolist() == [[0.0] * 6] * 2


def test_three_hundred_objects_take_the_memory_of_their_windows() -> None:
    """A hundredth of three hundred whole masks, where objects are a tenth of the picture high and wide."""
    masks = np.zeros((300, 400, 400), dtype=bool)
    corners = np.random.default_rng(0).integers(0, 360, (300, 2))
    for mask, (y, x) in zip(masks, corners):
        mask[y : y + 40, x : x + 40] = True
    bitmaps = Bitmaps.of(torch.from_numpy(masks))
    assert bitmaps.pixels.nbytes == 300 * 40 * 40 + 1
    assert bitmaps.pixels.nbytes + bitmaps.windows.nbytes < 0.0103 * masks.nbytes
