from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groupdetr.ops.boxes import cxcywh_to_xyxy, generalized_iou, inverse_sigmoid, xyxy_to_cxcywh


def boxes(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.01


@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(0, 12))
def test_generalized_iou_is_torchvisions(seed: int, a: int, b: int) -> None:
    some, others = cxcywh_to_xyxy(boxes(seed, a)), cxcywh_to_xyxy(boxes(seed + 1, b))
    found = generalized_iou(some[:, None], others[None])
    assert torch.allclose(found, torchvision.ops.generalized_box_iou(some, others), atol=1e-12)


def test_generalized_iou_of_a_box_with_itself_is_one_and_of_far_ones_nearly_minus_one() -> None:
    a, b = torch.tensor([0.0, 0.0, 1e-3, 1e-3]), torch.tensor([0.999, 0.999, 1.0, 1.0])
    assert generalized_iou(a, a) == 1
    assert generalized_iou(a, b) == pytest.approx(-1, abs=1e-4)


def test_generalized_iou_with_a_box_of_no_area_is_finite() -> None:
    point, box = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([0.2, 0.2, 0.8, 0.8])
    assert generalized_iou(point, box) == 0


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
