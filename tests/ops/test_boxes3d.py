"""Boxes in space and their codes are two names of one thing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from groupdetr.ops.boxes3d import CENTRE, LENGTH_FIRST, VELOCITY, box_to_code, code_to_box


def boxes(count: int = 200) -> Tensor:
    torch.manual_seed(0)
    place, size, motion = (
        torch.randn(count, 3) * 20,
        torch.rand(count, 3) * 5 + 0.1,
        torch.randn(count, 2),
    )
    return torch.cat([place, size, (torch.rand(count, 1) * 2 - 1) * 3.1, motion], dim=1)


def test_a_box_survives_its_code() -> None:
    assert torch.allclose(code_to_box(box_to_code(boxes())), boxes(), atol=1e-5)


def test_the_code_is_mmdet3ds_of_before_1_0() -> None:
    """Its angle is -yaw - pi/2, and the width comes first."""
    x, y, z, width, length, height, yaw, vx, vy = boxes(1)[0].tolist()
    angle = -yaw - math.pi / 2
    expected = [
        x,
        y,
        math.log(width),
        math.log(length),
        z,
        math.log(height),
        math.sin(angle),
        math.cos(angle),
        vx,
        vy,
    ]
    code = box_to_code(boxes(1))[0]
    assert code.tolist() == pytest.approx(expected, abs=1e-5)
    assert code[[*CENTRE]].tolist() == pytest.approx([x, y, z])
    assert code[VELOCITY:].tolist() == pytest.approx([vx, vy])


def test_an_angle_is_read_off_a_sine_and_cosine_of_any_length() -> None:
    code = box_to_code(boxes())
    code[:, 6:8] *= 0.01
    assert torch.allclose(code_to_box(code), boxes(), atol=1e-5)


def test_mmdet3d_1_says_the_length_first() -> None:
    code = box_to_code(boxes())
    assert torch.equal(code[:, LENGTH_FIRST][:, LENGTH_FIRST], code)
    swapped = boxes()[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
    assert torch.equal(code[:, LENGTH_FIRST], box_to_code(swapped))


def test_yaw_lies_within_a_half_turn() -> None:
    turned = boxes()
    turned[:, 6] += 4 * math.pi
    yaw = code_to_box(box_to_code(turned))[:, 6]
    assert (yaw.abs() <= math.pi).all()
    assert torch.allclose(yaw, boxes()[:, 6], atol=1e-5)
