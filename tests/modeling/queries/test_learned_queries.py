"""PETR's queries are learned 3D points, used as they are."""

from __future__ import annotations

import pytest
import torch

from groupdetr.modeling.queries.learned_queries import LearnedPoints3D
from groupdetr.structures.memory import Memory

CHANNELS = 16
MEMORY = Memory.from_tokens(
    tokens=torch.zeros(2, 1, CHANNELS),
    position=torch.zeros(2, 1, CHANNELS),
    padding=torch.zeros(2, 1).bool(),
    shapes=((1, 1),),
    padded=False,
)


def test_points_start_uniformly_in_the_detection_space_and_may_leave_it() -> None:
    torch.manual_seed(0)
    source = LearnedPoints3D(2, 500, CHANNELS, inference_group=0)
    assert 0 <= source.points.min() < 0.01
    assert 0.99 < source.points.max() <= 1
    with torch.no_grad():
        source.points[0, 0] = torch.tensor([-0.2, 1.3, 0.5])
    queries = source(MEMORY, None)
    assert torch.equal(queries.reference[0], source.points)
    assert queries.content.shape == (2, 2, 500, CHANNELS)
    assert not queries.content.any()


def test_init_around_origin_is_uniform_over_the_area_of_a_disc() -> None:
    source = LearnedPoints3D(3, 4000, CHANNELS, inference_group=0)
    source.init_around_origin(0.25)
    distance = (source.points[..., :2] - 0.5).norm(dim=-1)
    assert distance.max() <= 0.25
    assert (distance < 0.125).float().mean() == pytest.approx(1 / 4, abs=0.02)
    assert (source.points[..., 2] == 0.5).all()
    assert (source.points[0] != source.points[1]).any(), "groups are initialised independently"
