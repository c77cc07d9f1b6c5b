"""Cropped masks of objects, sampled at points as if they were stored at full size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures import masks as masks_module
from groupdetr.structures.masks import CroppedMasks
from tests.dense import dense_masks

SIDES = st.integers(1, 12)
COUNTS = st.integers(0, 5)
DENSITIES = st.sampled_from([0.0, 0.05, 0.5, 1.0])  # share of the pixels inside of a mask


def random_masks(count: int, height: int, width: int, density: float, seed: int = 0) -> Tensor:
    """Return masks [T,H,W] bool of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, height, width, generator=generator) < density


def grid_points(y: Tensor, x: Tensor) -> Tensor:
    """Return all points [len(y)*len(x),2] of a grid, x and y."""
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def grid_sampled(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks [T,H,W] at points [P,2] by torch, in double precision: [T,P]."""
    size = torch.tensor([masks.shape[2], masks.shape[1]], dtype=torch.float64)
    grid = (2 * points.double() / size - 1).expand(len(masks), 1, -1, 2)  # in [-1,1]
    sampled = F.grid_sample(masks[:, None].double(), grid, "bilinear", "zeros", align_corners=False)
    return sampled[:, 0, 0]


@given(count=COUNTS, height=SIDES, width=SIDES, density=DENSITIES)
def test_at_pixel_centres_a_cropped_mask_equals_its_pixels(
    count: int, height: int, width: int, density: float
) -> None:
    masks = random_masks(count, height, width, density)
    cropped = CroppedMasks.from_dense(masks)
    assert len(cropped) == count
    assert torch.equal(dense_masks(cropped, (height, width)), masks)
    centres = grid_points(torch.arange(height) + 0.5, torch.arange(width) + 0.5)
    assert torch.equal(cropped.at(centres).view(count, height, width), masks.float())


@given(
    count=st.integers(1, 5), height=SIDES, width=SIDES, density=DENSITIES, seed=st.integers(0, 99)
)
def test_at_any_point_a_cropped_mask_equals_the_full_mask(
    count: int, height: int, width: int, density: float, seed: int
) -> None:
    """This includes points on edges and corners of pixels, and outside of the image."""
    generator = torch.Generator().manual_seed(seed)
    random_points = torch.rand(40, 2, generator=generator) * 1.4 - 0.2
    random_points = random_points * torch.tensor([width, height])
    corners = grid_points(torch.arange(-1, height + 2.0), torch.arange(-1, width + 2.0))
    points = torch.cat([random_points, corners])
    masks = random_masks(count, height, width, density, seed)
    sampled = CroppedMasks.from_dense(masks).at(points)
    torch.testing.assert_close(sampled.double(), grid_sampled(masks, points), rtol=0, atol=2e-6)


def test_sampling_a_few_objects_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cropped = CroppedMasks.from_dense(random_masks(7, 9, 8, 0.5))
    points = 10 * torch.rand(30, 2)
    expected = cropped.at(points)
    monkeypatch.setattr(masks_module, "MAX_LOOKUPS", 60)
    assert torch.equal(cropped.at(points), expected)


def test_three_hundred_masks_take_the_memory_of_their_windows() -> None:
    """That is a hundredth of full masks if objects have a tenth of the image's height and width."""
    masks = np.zeros((300, 400, 400), dtype=bool)
    corners = np.random.default_rng(0).integers(0, 360, (300, 2))
    for mask, (y, x) in zip(masks, corners):
        mask[y : y + 40, x : x + 40] = True
    cropped = CroppedMasks.from_dense(torch.from_numpy(masks))
    assert cropped.pixels.nbytes == 300 * 40 * 40 + 1
    assert cropped.pixels.nbytes + cropped.windows.nbytes < 0.0103 * masks.nbytes


@given(
    count=st.integers(1, 5), height=SIDES, width=SIDES, density=DENSITIES, seed=st.integers(0, 99)
)
def test_the_nearest_pixel_of_a_cropped_mask_is_that_of_the_full_mask(
    count: int, height: int, width: int, density: float, seed: int
) -> None:
    masks = random_masks(count, height, width, density, seed)
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(20, 2, generator=generator) * torch.tensor([width, height])
    columns, rows = points.long().unbind(1)
    expected = masks[:, rows, columns].float()
    assert torch.equal(CroppedMasks.from_dense(masks).nearest_at(points), expected)
