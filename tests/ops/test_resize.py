"""The operation for torch.compile has the results and the gradients of `interpolate`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from groupdetr.ops.resize import resize_antialiased


@pytest.mark.parametrize("size", [(3, 9), (7, 5), (4, 2)])
def test_values_and_gradients_are_those_of_interpolate(size: tuple[int, int]) -> None:
    x = torch.randn(1, 5, 5, 2).permute(0, 3, 1, 2).requires_grad_()
    options = {"mode": "bicubic", "align_corners": False, "antialias": True}
    expected = F.interpolate(x, size=size, **options)
    resized = resize_antialiased(x, *size)
    assert torch.equal(resized, expected)
    grad = torch.randn_like(expected)
    (theirs,) = torch.autograd.grad(expected, x, grad)
    (ours,) = torch.autograd.grad(resized, x, grad)
    assert torch.equal(ours, theirs)
