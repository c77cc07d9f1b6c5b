"""A mask that is told lazily is the same mask, wherever one looks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from groupdetr.ops.masks import sample
from groupdetr.structures.masks import Canvas, Masks


def masks() -> Masks:
    torch.manual_seed(0)
    return Masks(
        torch.randn(2, 3, 5, 8),
        Canvas(torch.randn(2, 8, 12, 16), torch.tensor([[48, 64], [40, 50]])),
    )


def test_the_whole_mask_is_the_dot_product_with_every_pixel() -> None:
    said = masks()
    expected = torch.einsum("bknc,bchw->bknhw", said.embedding, said.canvas.pixels)
    assert torch.allclose(said.full(), expected, atol=1e-5)


def test_resizing_the_pixels_is_resizing_the_mask() -> None:
    said = masks()
    for shape in ((6, 8), (24, 30), (5, 7)):
        expected = F.interpolate(
            said.full().flatten(1, 2), shape, mode="bilinear", align_corners=False
        )
        assert torch.allclose(said.resized(shape).flatten(1, 2), expected, atol=1e-5)


def test_sampling_the_pixels_is_sampling_the_mask() -> None:
    said, points = masks(), torch.rand(2, 9, 2)
    expected = sample(said.full().flatten(1, 2), points)
    assert torch.allclose(said.at(points).flatten(1, 2), expected, atol=1e-5)
