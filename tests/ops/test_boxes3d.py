"""3D boxes and their encoding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from groupdetr.ops.boxes3d import CENTRE, LENGTH_FIRST, VELOCITY, decode_boxes3d, encode_boxes3d


def random_boxes(count: int = 200) -> Tensor:
    torch.manual_seed(0)
    centre = torch.randn(count, 3) * 20
    size = torch.rand(count, 3) * 5 + 0.1
    velocity = torch.randn(count, 2)
    yaw = (torch.rand(count, 1) * 2 - 1) * 3.1
    return torch.cat([centre, size, yaw, velocity], dim=1)


def test_decoding_undoes_encoding() -> None:
    boxes = random_boxes()
    assert torch.allclose(decode_boxes3d(encode_boxes3d(boxes)), boxes, atol=1e-5)


def test_the_encoding_is_that_of_mmdet3d_before_1_0() -> None:
    """Its angle is -yaw - pi/2, and the width comes before the length."""
    x, y, z, width, length, height, yaw, vx, vy = random_boxes(1)[0].tolist()
    angle = -yaw - math.pi / 2
    centre_and_size = [x, y, math.log(width), math.log(length), z, math.log(height)]
    expected = [*centre_and_size, math.sin(angle), math.cos(angle), vx, vy]
    encoded = encode_boxes3d(random_boxes(1))[0]
    assert encoded.tolist() == pytest.approx(expected, abs=1e-5)
    assert encoded[[*CENTRE]].tolist() == pytest.approx([x, y, z])
    assert encoded[VELOCITY:].tolist() == pytest.approx([vx, vy])


def test_sine_and_cosine_may_have_any_common_length() -> None:
    encoded = encode_boxes3d(random_boxes())
    encoded[:, 6:8] *= 0.01
    assert torch.allclose(decode_boxes3d(encoded), random_boxes(), atol=1e-5)


def test_in_mmdet3d_1_the_length_comes_first() -> None:
    encoded = encode_boxes3d(random_boxes())
    assert torch.equal(encoded[:, LENGTH_FIRST][:, LENGTH_FIRST], encoded)
    width_and_length_swapped = random_boxes()[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]]
    assert torch.equal(encoded[:, LENGTH_FIRST], encode_boxes3d(width_and_length_swapped))


def test_the_decoded_yaw_lies_within_half_a_turn() -> None:
    boxes = random_boxes()
    boxes[:, 6] += 4 * math.pi
    yaw = decode_boxes3d(encode_boxes3d(boxes))[:, 6]
    assert (yaw.abs() <= math.pi).all()
    assert torch.allclose(yaw, random_boxes()[:, 6], atol=1e-5)
