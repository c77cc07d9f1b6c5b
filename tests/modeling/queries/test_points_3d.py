"""PETR's queries are points in space, taken as they are learned."""

from __future__ import annotations

import math

import pytest
import torch

from groupdetr.modeling.queries.learned_queries import LearnedSpacePoints
from groupdetr.structures.memory import Memory

CHANNELS = 16
MEMORY = Memory(
    torch.zeros(2, 1, CHANNELS),
    torch.zeros(2, 1, CHANNELS),
    torch.zeros(2, 1).bool(),
    ((1, 1),),
    False,
)


def test_points_begin_anywhere_and_may_leave_the_space_they_are_shares_of() -> None:
    torch.manual_seed(0)
    source = LearnedSpacePoints(2, 500, CHANNELS, inference_group=0)
    assert 0 <= source.points.min() < 0.01 < 0.99 < source.points.max() <= 1
    with torch.no_grad():
        source.points[0, 0] = torch.tensor([-0.2, 1.3, 0.5])
    queries = source(MEMORY, None)
    assert torch.equal(queries.reference[0], source.points)
    assert queries.content.shape == (2, 2, 500, CHANNELS)
    assert not queries.content.any()


def test_their_position_is_read_off_the_waves_of_y_x_and_z() -> None:
    torch.manual_seed(0)
    source = LearnedSpacePoints(2, 3, CHANNELS, inference_group=0)
    x, y, z = source.points[1, 2].tolist()
    half = CHANNELS // 2
    waves = [
        (math.cos if k % 2 else math.sin)(2 * math.pi * value / 10000 ** (2 * (k // 2) / half))
        for value in (y, x, z)
        for k in range(half)
    ]
    position = source(MEMORY, None).position
    assert position is not None
    assert (position[0, 1, 2] - source.place(torch.tensor(waves))).abs().max() < 1e-5


def test_points_may_start_around_the_vehicle_as_many_to_an_area_everywhere() -> None:
    source = LearnedSpacePoints(3, 4000, CHANNELS, inference_group=0)
    source.start_around(0.25)
    distance = (source.points[..., :2] - 0.5).norm(dim=-1)
    assert distance.max() <= 0.25
    assert (distance < 0.125).float().mean() == pytest.approx(1 / 4, abs=0.02)
    assert (source.points[..., 2] == 0.5).all()
    assert (source.points[0] != source.points[1]).any(), "groups start as independent draws"
