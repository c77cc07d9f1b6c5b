"""The paper in one file: its functions against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from groupdetr.groups import (
    end_to_end,
    jointly,
    kept_at_inference,
    match_groups,
    match_naively,
    mean_over_groups,
    separately,
)
from groupdetr.structures.assignment import Assignment

problems = st.tuples(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
    st.lists(st.integers(0, 7), min_size=1, max_size=3),
    st.integers(0, 10**6),
)  L, K, N, objects of each image, seed


def draw(stages: int, groups: int, queries: int, counts: list[int], seed: int) -> np.ndarray:
    """Costs [L,B,K,T,N]; slots beyond an image's objects are the cheapest of all, and must not be looked at."""
    costs = np.random.default_rng(seed).normal(
        size=(stages, len(counts), groups, max(counts), queries)
    )
    for image, count in enumerate(counts):
        costs[:, image, :, count:] = -1e6
    return costs.astype(np.float32)


def pairs(found: Assignment, stage: int, image: int, group: int) -> tuple[Tensor, Tensor]:
    """Queries and targets of one problem."""
    here = (found.image[stage] == image) & (found.group[stage] == group)
    return found.query[stage][here], found.target[stage][here]


@settings(deadline=None)
@given(problems)
def test_every_group_of_every_image_and_stage_is_matched_on_its_own(problem: tuple) -> None:
    stages, groups, queries, counts, _ = problem
    costs = draw(*problem)
    found = match_groups(costs, counts)
    assert found.query.shape == (stages, groups * sum(min(count, queries) for count in counts))
    for stage, image, group in np.ndindex(stages, len(counts), groups):
        cost = costs[stage, image, group, : counts[image]]
        query, target = pairs(found, stage, image, group)
        rows, columns = linear_sum_assignment(cost)
        assert len(set(query.tolist())) == len(set(target.tolist())) == len(rows)
        assert cost[target, query].sum() == pytest.approx(cost[rows, columns].sum(), abs=1e-4)


def test_the_pairs_of_a_group_are_the_cheapest_of_all() -> None:
    """By trying them all."""
    costs = draw(1, 2, 4, [3], seed=5)
    found = match_groups(costs, [3])
    for group in (0, 1):
        cost = costs[0, 0, group]
        best = min(
            sum(cost[t, q] for t, q in enumerate(pick)) for pick in permutations(range(4), 3)
        )
        query, target = pairs(found, 0, 0, group)
        assert cost[target, query].sum() == pytest.approx(best)


@settings(deadline=None)
@given(problems)
def test_naive_matching_gives_every_object_k_queries_of_any_group(problem: tuple) -> None:
    """Table 7 (b): one problem over all K*N queries, with K copies of every object."""
    stages, groups, queries, counts, _ = problem
    costs = draw(*problem)
    found = match_naively(costs, counts)
    for stage, image in np.ndindex(stages, len(counts)):
        here = found.image[stage] == image
        target, group, query = (
            x[stage][here].numpy() for x in (found.target, found.group, found.query)
        )
        if counts[image] <= queries:
            assert np.bincount(target, minlength=counts[image]).tolist() == [groups] * counts[image]
        assert len({*zip(group, query)}) == len(query) == groups * min(counts[image], queries)
        everyone = (
            costs[stage, image, :, : counts[image]]
            .swapaxes(0, 1)
            .reshape(counts[image], groups * queries)
        )
        copies = np.tile(everyone, (groups, 1))
        best = copies[linear_sum_assignment(copies)].sum()
        assert costs[stage, image, group, target, query].sum() == pytest.approx(best, abs=1e-3)


def test_normalisers_are_the_mean_over_groups_clamped_before_k() -> None:
    assert mean_over_groups(11, torch.tensor(7.5)) == 11 * 7.5
    assert mean_over_groups(11, torch.tensor(0.0)) == 11
    assert mean_over_groups(1, torch.tensor(0.25)) == 1


def test_inference_keeps_one_group_or_all() -> None:
    groups = torch.randn(4, 5, 6)
    assert torch.equal(groups[kept_at_inference(2)], groups[2:3])
    assert torch.equal(groups[kept_at_inference(None)], groups)


def test_groups_end_to_end_are_views_in_order() -> None:
    queries = torch.randn(2, 3, 4, 5)
    flat = end_to_end(queries)
    assert torch.equal(flat[:, 4:8], queries[:, 1])
    assert flat.data_ptr() == queries.data_ptr()


def test_attention_is_called_within_groups_or_over_all() -> None:
    seen = []

    def attention(content: Tensor, position: Tensor, blocked: Tensor | None) -> Tensor:
        seen.append(content.shape)
        assert blocked is None
        return content + position

    content, position = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for compete in (separately, jointly):
        assert torch.equal(compete(attention, content, position), content + position)
    assert seen == [(2, 3, 4, 5), (2, 1, 12, 5)]
