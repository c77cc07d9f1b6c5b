"""GridMask hides squares of a grid, the same in all images of a batch, and in training alone."""

from __future__ import annotations

import pytest
import torch

from groupdetr.modeling.backbones.grid_mask import GridMask, stripes

PIXELS = torch.ones(2, 3, 32, 80)


def test_what_is_hidden_are_rows_times_columns_for_all_images_and_channels() -> None:
    grid = GridMask(probability=1.0).train()
    for seed in range(20):
        torch.manual_seed(seed)
        seen = grid(PIXELS)
        assert torch.equal(seen, seen[:1, :1].expand_as(seen))
        hidden = seen[0, 0] == 0
        assert torch.equal(hidden, hidden.any(1, keepdim=True) & hidden.any(0))
    assert PIXELS.min() == 1, "the images themselves are left alone"


def test_on_average_three_quarters_are_seen() -> None:
    """As in the published code: 0.74, between 0.55 and 0.83 but for grids that are larger than the image."""
    torch.manual_seed(0)
    grid = GridMask(probability=1.0).train()
    seen = torch.stack(
        [1 - grid.squares(torch.zeros(1, 3, 320, 800)).float().mean() for _ in range(400)]
    )
    assert seen.mean().item() == pytest.approx(0.74, abs=0.015)


def test_stripes_are_half_of_a_period_wide_and_a_period_apart() -> None:
    torch.manual_seed(0)
    row = stripes(320, torch.tensor(10), torch.tensor(5))
    edges = row.int().diff().nonzero().flatten().diff()
    assert edges.unique().tolist() == [5]


def test_it_happens_as_often_as_told_and_never_in_evaluation() -> None:
    torch.manual_seed(0)
    grid = GridMask(probability=0.7).train()
    times = sum(int(not torch.equal(grid(PIXELS), PIXELS)) for _ in range(500))
    assert times == pytest.approx(350, abs=50)
    assert torch.equal(GridMask(probability=1.0).eval()(PIXELS), PIXELS)
