"""GridMask hides squares of a grid in training, the same in all images of a batch."""

from __future__ import annotations

import pytest
import torch

from groupdetr.modeling.backbones.grid_mask import GridMask, stripes

PIXELS = torch.ones(2, 3, 32, 80)


def test_hidden_pixels_are_rows_times_columns_in_all_images_and_channels() -> None:
    grid_mask = GridMask(probability=1.0).train()
    for seed in range(20):
        torch.manual_seed(seed)
        masked = grid_mask(PIXELS)
        assert torch.equal(masked, masked[:1, :1].expand_as(masked))
        hidden = masked[0, 0] == 0
        rows, columns = hidden.any(1, keepdim=True), hidden.any(0)
        assert torch.equal(hidden, rows & columns)
    assert PIXELS.min() == 1, "the images themselves do not change"


def test_three_quarters_are_visible_on_average() -> None:
    """The mean is 0.74, as in the published code.

    It is between 0.55 and 0.83 for all grids that are not larger than the image.
    """
    torch.manual_seed(0)
    grid_mask = GridMask(probability=1.0).train()
    pixels = torch.zeros(1, 3, 320, 800)
    visible = [1 - grid_mask.squares(pixels).float().mean() for _ in range(400)]
    assert torch.stack(visible).mean().item() == pytest.approx(0.74, abs=0.015)


def test_stripes_are_half_a_period_wide_and_half_a_period_apart() -> None:
    torch.manual_seed(0)
    row = stripes(320, torch.tensor(10), torch.tensor(5))
    edges = row.int().diff().nonzero().flatten()
    assert edges.diff().unique().tolist() == [5]


def test_it_is_applied_with_its_probability_and_never_in_evaluation() -> None:
    torch.manual_seed(0)
    grid_mask = GridMask(probability=0.7).train()
    times = sum(not torch.equal(grid_mask(PIXELS), PIXELS) for _ in range(500))
    assert times == pytest.approx(350, abs=50)
    assert torch.equal(GridMask(probability=1.0).eval()(PIXELS), PIXELS)
