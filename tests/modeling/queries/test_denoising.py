"""The noise of denoising queries, and how many there are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.modeling.queries.denoising import LabelAndBoxNoise, copies_apart


@pytest.mark.parametrize(
    ("objects", "copies"),
    [(0, 100), (1, 100), (7, 14), (40, 2), (50, 2), (51, 1), (100, 1), (250, 1)],
)
def test_as_many_copies_as_go_into_100_queries(objects: int, copies: int) -> None:
    """The figures of the official code's dynamic setting; 51 objects and more have one copy."""
    assert DNDETR().copies(objects) == copies


def test_the_original_number_of_copies_is_fixed() -> None:
    assert [DNDETR(denoising_groups=5).copies(objects) for objects in (0, 7, 300)] == [5, 5, 5]


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 1.0), st.integers(0, 10**6))
def test_boxes_move_by_half_their_size_at_most_and_stay_in_the_image(
    scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    boxes = torch.rand(2, 3, 50, 4)
    _, noised = LabelAndBoxNoise(5, 0.0, scale)(torch.zeros(2, 3, 50, dtype=torch.long), boxes)
    low = boxes - scale * torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], -1)
    high = boxes + scale * torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], -1)
    assert (noised >= low.clamp(0, 1) - 1e-6).all()
    assert (noised <= high.clamp(0, 1) + 1e-6).all()


def test_box_noise_is_uniform_over_its_reach() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1]).expand(20000, 4)
    _, noised = LabelAndBoxNoise(5, 0.0, 0.4)(torch.zeros(20000, dtype=torch.long), boxes)
    reach = (noised - boxes) / torch.tensor([0.04, 0.02, 0.08, 0.04])
    assert reach.abs().max() <= 1 + 1e-5
    assert reach.mean(0).abs().max() < 0.02
    assert (reach.std(0) - 3**-0.5).abs().max() < 0.02


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_labels_change_to_any_class_with_the_given_probability(ratio: float) -> None:
    """A fifth of the changed ones of five classes are what they were."""
    torch.manual_seed(0)
    labels = torch.full((50000,), 3)
    noised, boxes = LabelAndBoxNoise(5, ratio, 0.0)(labels, torch.full((50000, 4), 0.5))
    assert (boxes == 0.5).all()
    assert (noised != 3).float().mean().item() == pytest.approx(0.8 * ratio, abs=0.01)
    if ratio:
        assert noised.unique().tolist() == [0, 1, 2, 3, 4]


def test_who_sees_whom() -> None:
    """Two copies of two objects and one matching query; rows look, columns are seen."""
    blocked = copies_apart(copies=2, size=2, matching=1).int().tolist()
    assert blocked == [
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0],
    ]
