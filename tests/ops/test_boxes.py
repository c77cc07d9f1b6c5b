from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groupdetr.ops.boxes import cxcywh_to_xyxy, giou_distance, inverse_sigmoid, xyxy_to_cxcywh


def boxes(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.01


def distance(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Of boxes cx, cy, w, h that broadcast."""
    a, b = a.movedim(-1, 0), b.movedim(-1, 0)
    return giou_distance(a[2:], b[2:], (a - b).abs(), eps)


@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 12))
def test_the_giou_distance_is_torchvisions(seed: int, a: int, b: int) -> None:
    some, others = boxes(seed, a), boxes(seed + 1, b)
    expected = 1 - torchvision.ops.generalized_box_iou(cxcywh_to_xyxy(some), cxcywh_to_xyxy(others))
    assert torch.allclose(distance(some[:, None], others[None]), expected, atol=1e-12)


@given(st.integers(0, 10**6))
def test_its_gradient_is_torchvisions(seed: int) -> None:
    said, wanted = boxes(seed, 9).requires_grad_(), boxes(seed + 1, 9)
    expected = torchvision.ops.generalized_box_iou_loss(
        cxcywh_to_xyxy(said), cxcywh_to_xyxy(wanted), eps=0.0
    )
    ours, theirs = (
        torch.autograd.grad(x.sum(), said)[0] for x in (distance(said, wanted), expected)
    )
    assert torch.allclose(ours, theirs, atol=1e-9)


def test_a_box_is_at_distance_0_from_itself_and_nearly_2_from_a_far_one() -> None:
    a, b = torch.tensor([5e-4, 5e-4, 1e-3, 1e-3]), torch.tensor([0.9995, 0.9995, 1e-3, 1e-3])
    assert distance(a, a) == 0
    assert distance(a, b) == pytest.approx(2, abs=1e-4)


def test_a_small_box_is_as_exact_as_a_large_one() -> None:
    """Between corners, in single precision, three of its digits would be lost."""
    a, b = torch.tensor([0.7, 0.7, 1e-3, 1e-3]), torch.tensor([0.7002, 0.7002, 1e-3, 1e-3])
    assert distance(a, b).item() == pytest.approx(distance(a.double(), b.double()).item(), rel=1e-6)


def test_the_distance_of_a_box_of_no_area_is_finite() -> None:
    point, box = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.6, 0.6])
    assert distance(point, box) == 1
    assert distance(point, point, eps=1e-6) == 1


@given(st.integers(0, 10**6))
def test_the_two_forms_of_a_box_are_torchvisions_and_undo_each_other(seed: int) -> None:
    x = boxes(seed, 5)
    assert torch.equal(cxcywh_to_xyxy(x), torchvision.ops.box_convert(x, "cxcywh", "xyxy"))
    assert torch.allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(x)), x, atol=1e-15)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_inverse_sigmoid_undoes_the_sigmoid_and_is_clamped_at_eps(eps: float) -> None:
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    assert torch.allclose(inverse_sigmoid(x.sigmoid(), eps), x)
    ends = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), eps)
    limit = -torch.tensor(eps, dtype=torch.float64).log()
    assert torch.allclose(ends, torch.stack([-limit, -limit, limit, limit]))
