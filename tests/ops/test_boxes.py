"""2D boxes, compared with torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groupdetr.ops.boxes import (
    box_iou,
    cxcywh_to_xyxy,
    giou_distance,
    inverse_sigmoid,
    move_boxes,
    xyxy_to_cxcywh,
)


def random_boxes(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.01


def distance(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Return 1 - GIoU of boxes cx, cy, w, h that broadcast."""
    a, b = a.movedim(-1, 0), b.movedim(-1, 0)
    return giou_distance(a[2:], b[2:], (a - b).abs(), eps)


@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 12))
def test_the_giou_distance_is_that_of_torchvision(seed: int, count_a: int, count_b: int) -> None:
    a, b = random_boxes(seed, count_a), random_boxes(seed + 1, count_b)
    giou = torchvision.ops.generalized_box_iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))
    assert torch.allclose(distance(a[:, None], b[None]), 1 - giou, atol=1e-12)


@given(st.integers(0, 10**6))
def test_the_gradient_of_the_giou_distance_is_that_of_torchvision(seed: int) -> None:
    predictions = random_boxes(seed, 9).requires_grad_()
    targets = random_boxes(seed + 1, 9)
    torchvision_loss = torchvision.ops.generalized_box_iou_loss(
        cxcywh_to_xyxy(predictions), cxcywh_to_xyxy(targets), eps=0.0
    )
    (gradient,) = torch.autograd.grad(distance(predictions, targets).sum(), predictions)
    (torchvision_gradient,) = torch.autograd.grad(torchvision_loss.sum(), predictions)
    assert torch.allclose(gradient, torchvision_gradient, atol=1e-9)


def test_the_distance_of_small_boxes_is_as_exact_as_that_of_large_ones() -> None:
    """Computed from corners in float32, it would lose three digits."""
    a, b = torch.tensor([0.7, 0.7, 1e-3, 1e-3]), torch.tensor([0.7002, 0.7002, 1e-3, 1e-3])
    assert distance(a, b).item() == pytest.approx(distance(a.double(), b.double()).item(), rel=1e-6)


def test_the_distance_of_a_box_without_area_is_finite() -> None:
    point, box = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.6, 0.6])
    assert distance(point, box) == 1
    assert distance(point, point, eps=1e-6) == 1


@given(st.integers(0, 10**6))
def test_conversions_are_those_of_torchvision_and_undo_each_other(seed: int) -> None:
    boxes = random_boxes(seed, 5)
    expected = torchvision.ops.box_convert(boxes, "cxcywh", "xyxy")
    assert torch.equal(cxcywh_to_xyxy(boxes), expected)
    assert torch.allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, atol=1e-15)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_inverse_sigmoid_undoes_the_sigmoid_and_is_clamped_at_eps(eps: float) -> None:
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    assert torch.allclose(inverse_sigmoid(x.sigmoid(), eps), x)
    clamped = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), eps)
    limit = -torch.tensor(eps, dtype=torch.float64).log()
    assert torch.allclose(clamped, torch.stack([-limit, -limit, limit, limit]))


@given(st.integers(0, 10**6))
def test_the_iou_is_that_of_torchvision(seed: int) -> None:
    a, b = random_boxes(seed, 7), random_boxes(seed + 1, 5)
    expected = torchvision.ops.box_iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))
    ours = box_iou(a.movedim(-1, 0)[:, :, None], b.movedim(-1, 0)[:, None])
    assert torch.allclose(ours, expected, atol=1e-12)


def test_the_iou_of_boxes_without_area_is_zero() -> None:
    point, box = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.6, 0.6])
    assert box_iou(point, box) == box_iou(point, point) == 0


def test_boxes_are_moved_by_their_own_size_in_at_least_32_bits() -> None:
    box = torch.tensor([0.5, 0.4, 0.2, 0.1])
    offsets = torch.tensor([0.5, -1.0, math.log(2), 0.0])
    assert torch.allclose(move_boxes(box, offsets), torch.tensor([0.6, 0.3, 0.4, 0.1]))
    assert torch.equal(move_boxes(box, torch.zeros(4)), box)
    assert move_boxes(box, offsets.bfloat16()).dtype == torch.float32
    assert move_boxes(box.double(), offsets).dtype == torch.float64
