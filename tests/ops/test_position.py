"""Sine position embeddings, compared with the formula of DETR's appendix A.4."""

from __future__ import annotations

import math

import torch

from groupdetr.ops.position import image_embedding, sine_embedding


def feature(coordinate: float, index: int, channels: int, temperature: float) -> float:
    """Return one feature by the formula: even ones are sines, odd ones cosines."""
    angle = coordinate * 2 * math.pi / temperature ** (2 * (index // 2) / channels)
    return math.cos(angle) if index % 2 else math.sin(angle)


def features(coordinates: tuple[float, ...], channels: int, temperature: float) -> torch.Tensor:
    """Return ``channels`` features of each coordinate, one coordinate after the other."""
    values = []
    for coordinate in coordinates:
        for index in range(channels):
            values.append(feature(coordinate, index, channels, temperature))
    return torch.tensor(values)


def test_points_and_boxes_of_any_leading_axes_are_embedded_y_x_w_h() -> None:
    points = torch.rand(2, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    embedding = sine_embedding(points, channels=6)
    assert embedding.shape == (2, 3, 5, 12)
    x, y = points[1, 2, 4].tolist()
    assert torch.allclose(embedding[1, 2, 4], features((y, x), 6, 10000.0), atol=1e-6)
    embedding = sine_embedding(torch.tensor([0.2, 0.7, 0.3, 0.4]), channels=4)
    assert torch.allclose(embedding, features((0.7, 0.2, 0.3, 0.4), 4, 10000.0), atol=1e-6)


def test_a_pixel_is_embedded_by_its_position_in_the_unpadded_image() -> None:
    padding = torch.zeros(1, 4, 6, dtype=torch.bool)
    padding[:, 3:] = padding[:, :, 4:] = True  # 3 rows and 4 columns are valid
    embedding = image_embedding(padding, channels=8, temperature=20.0)[0, 1, 2]
    y, x = 2 / (3 + 1e-6), 3 / (4 + 1e-6)
    assert torch.allclose(embedding, features((y, x), 4, 20.0), atol=1e-6)


def test_padding_neither_stretches_nor_shifts_the_embedding() -> None:
    unpadded = image_embedding(torch.zeros(1, 3, 4, dtype=torch.bool), channels=16)
    padding = torch.ones(1, 5, 9, dtype=torch.bool)
    padding[:, :3, :4] = False
    assert torch.equal(image_embedding(padding, channels=16)[:, :3, :4], unpadded)


def test_an_offset_of_minus_a_half_moves_positions_to_pixel_centres() -> None:
    """This is the offset of Deformable DETR."""
    padding = torch.zeros(1, 1, 2, dtype=torch.bool)
    embedding = image_embedding(padding, channels=8, offset=-0.5)[0, 0, 0]
    y, x = 0.5 / (1 + 1e-6), 0.5 / (2 + 1e-6)
    assert torch.allclose(embedding, features((y, x), 4, 10000.0), atol=1e-6)
