"""The noise of denoising queries, their number, and their attention mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.modeling.queries.denoising import (
    GroupLabelEmbedding,
    LabelAndBoxNoise,
    denoising_attn_mask,
)
from groupdetr.modeling.queries.query_source import GroupIndex


def test_as_many_copies_as_fit_into_100_queries() -> None:
    """The numbers of the official code's dynamic setting. 51 or more objects have one copy."""
    objects = (0, 1, 7, 40, 50, 51, 100, 250)
    assert [DNDETR().copies(count) for count in objects] == [100, 100, 14, 2, 2, 1, 1, 1]


def test_denoising_groups_fixes_the_number_of_copies() -> None:
    assert [DNDETR(denoising_groups=5).copies(objects) for objects in (0, 7, 300)] == [5, 5, 5]


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 1.0), st.integers(0, 10**6))
def test_box_noise_is_at_most_half_the_size_and_stays_in_the_image(scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    boxes = torch.rand(2, 3, 50, 4)
    labels = torch.zeros(2, 3, 50, dtype=torch.long)
    _, noised = LabelAndBoxNoise(5, 0.0, scale)(labels, boxes)
    max_change = scale * torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], -1)
    assert (noised >= (boxes - max_change).clamp(0, 1) - 1e-6).all()
    assert (noised <= (boxes + max_change).clamp(0, 1) + 1e-6).all()


def test_box_noise_is_uniform() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1]).expand(20000, 4)
    _, noised = LabelAndBoxNoise(5, 0.0, 0.4)(torch.zeros(20000, dtype=torch.long), boxes)
    noise = (noised - boxes) / torch.tensor([0.04, 0.02, 0.08, 0.04])  # in [-1,1]
    assert noise.abs().max() <= 1 + 1e-5
    assert noise.mean(0).abs().max() < 0.02
    assert (noise.std(0) - 3**-0.5).abs().max() < 0.02


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_labels_are_replaced_by_any_class_with_the_given_probability(ratio: float) -> None:
    """With five classes, one fifth of the replaced labels are the same as before."""
    torch.manual_seed(0)
    labels = torch.full((50000,), 3)
    noised, boxes = LabelAndBoxNoise(5, ratio, 0.0)(labels, torch.full((50000, 4), 0.5))
    assert (boxes == 0.5).all()
    assert (noised != 3).float().mean().item() == pytest.approx(0.8 * ratio, abs=0.01)
    if ratio:
        assert noised.unique().tolist() == [0, 1, 2, 3, 4]


def test_attention_mask_separates_copies_and_hides_them_from_matching_queries() -> None:
    """Two copies of two objects, and one matching query. A row attends to columns that are 0."""
    blocked = denoising_attn_mask(copies=2, queries_per_copy=2, num_matching=1).int().tolist()
    assert blocked == [
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0],
    ]


@pytest.mark.parametrize("groups", [slice(None), slice(0, 2), [0, 2]])
def test_every_group_may_have_its_own_embedding_of_the_labels(groups: GroupIndex) -> None:
    embedding = GroupLabelEmbedding(num_groups=3, num_classes=5, channels=4)
    active = range(3)[groups] if isinstance(groups, slice) else groups
    labels = torch.randint(5, (2, len(active), 7))  # [B,K,D]
    content = embedding(labels, groups)
    assert content.shape == (2, len(active), 7, 4)
    for row, group in enumerate(active):
        assert torch.equal(content[:, row], embedding.weight[group][labels[:, row]])
