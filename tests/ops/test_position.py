from __future__ import annotations

import math

import torch

from groupdetr.ops.position import image_embedding, sine_embedding


def wave(coordinate: float, feature: int, channels: int, temperature: float) -> float:
    """One feature by the formula of the paper (DETR, A.4): even sines, odd cosines."""
    angle = coordinate * 2 * math.pi / temperature ** (2 * (feature // 2) / channels)
    return math.cos(angle) if feature % 2 else math.sin(angle)


def test_a_point_is_embedded_y_before_x() -> None:
    found = sine_embedding(torch.tensor([0.2, 0.7]), channels=8)
    expected = [wave(c, i, 8, 10000.0) for c in (0.7, 0.2) for i in range(8)]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_a_box_is_embedded_y_x_w_h() -> None:
    found = sine_embedding(torch.tensor([0.2, 0.7, 0.3, 0.4]), channels=4)
    expected = [wave(c, i, 4, 10000.0) for c in (0.7, 0.2, 0.3, 0.4) for i in range(4)]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_leading_axes_are_batch() -> None:
    places = torch.rand(2, 3, 5, 2)
    found = sine_embedding(places, channels=6)
    assert found.shape == (2, 3, 5, 12)
    assert torch.equal(found[1, 2, 4], sine_embedding(places[1, 2, 4], channels=6))


def test_a_pixel_of_the_image_is_embedded_by_its_share_of_the_valid_part() -> None:
    padding = torch.zeros(1, 4, 6, dtype=torch.bool)
    padding[:, 3:] = padding[:, :, 4:] = True  # 3 rows and 4 columns are valid
    found = image_embedding(padding, channels=8, temperature=20.0)[0, 1, 2]
    y, x = 2 / (3 + 1e-6), 3 / (4 + 1e-6)
    expected = [wave(c, i, 4, 20.0) for c in (y, x) for i in range(4)]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_padding_neither_stretches_nor_shifts() -> None:
    alone = image_embedding(torch.zeros(1, 3, 4, dtype=torch.bool), channels=16)
    padding = torch.ones(1, 5, 9, dtype=torch.bool)
    padding[:, :3, :4] = False
    assert torch.equal(image_embedding(padding, channels=16)[:, :3, :4], alone)


def test_the_offset_moves_pixels_to_their_centres() -> None:
    """Deformable DETR's -0.5."""
    found = image_embedding(torch.zeros(1, 1, 2, dtype=torch.bool), channels=8, offset=-0.5)[
        0, 0, 0
    ]
    expected = [
        wave(c / (n + 1e-6), i, 4, 10000.0) for c, n in ((0.5, 1), (0.5, 2)) for i in range(4)
    ]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)
