"""The functions of `groups.py`, compared with brute force."""

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
    attend_across_groups,
    attend_within_groups,
    flatten_groups,
    inference_groups,
    loss_normaliser,
    match_groups,
    match_naively,
)
from groupdetr.structures.assignment import Assignment

# L, K, N, number of objects of each image, seed
Problem = tuple[int, int, int, list[int], int]
problems = st.tuples(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
    st.lists(st.integers(0, 7), min_size=1, max_size=3),
    st.integers(0, 10**6),
)


def random_costs(
    layers: int, groups: int, queries: int, counts: list[int], seed: int
) -> np.ndarray:
    """Return costs [L,B,K,T,N].

    The padding behind the objects of an image has the lowest costs. It must not be matched.
    """
    shape = (layers, len(counts), groups, max(counts), queries)
    costs = np.random.default_rng(seed).normal(size=shape)
    for image, count in enumerate(counts):
        costs[:, image, :, count:] = -1e6
    return costs.astype(np.float32)


def pairs_of(assignment: Assignment, layer: int, image: int, group: int) -> tuple[Tensor, Tensor]:
    """Return the queries and targets that are assigned in one group of one layer and image."""
    selected = (assignment.image[layer] == image) & (assignment.group[layer] == group)
    return assignment.query[layer][selected], assignment.target[layer][selected]


@settings(deadline=None)
@given(problems)
def test_every_group_of_every_image_and_layer_is_matched_independently(problem: Problem) -> None:
    layers, groups, queries, counts, _ = problem
    costs = random_costs(*problem)
    assignment = match_groups(costs, counts)
    num_pairs = groups * sum(min(count, queries) for count in counts)
    assert assignment.query.shape == (layers, num_pairs)
    for layer, image, group in np.ndindex(layers, len(counts), groups):
        cost = costs[layer, image, group, : counts[image]]
        query, target = pairs_of(assignment, layer, image, group)
        rows, columns = linear_sum_assignment(cost)
        assert len(set(query.tolist())) == len(set(target.tolist())) == len(rows)
        assert cost[target, query].sum() == pytest.approx(cost[rows, columns].sum(), abs=1e-4)


def test_the_pairs_of_a_group_have_the_lowest_cost_of_all_permutations() -> None:
    costs = random_costs(1, 2, 4, [3], seed=5)
    assignment = match_groups(costs, [3])
    for group in (0, 1):
        cost = costs[0, 0, group]
        costs_of_permutations = []
        for queries in permutations(range(4), 3):
            costs_of_permutations.append(sum(cost[t, q] for t, q in enumerate(queries)))
        query, target = pairs_of(assignment, 0, 0, group)
        assert cost[target, query].sum() == pytest.approx(min(costs_of_permutations))


@settings(deadline=None)
@given(problems)
def test_naive_matching_assigns_k_queries_of_any_group_to_every_object(problem: Problem) -> None:
    """Table 7 (b): one problem over all K*N queries, with K copies of every object."""
    layers, groups, queries, counts, _ = problem
    costs = random_costs(*problem)
    assignment = match_naively(costs, counts)
    for layer, image in np.ndindex(layers, len(counts)):
        count = counts[image]
        selected = assignment.image[layer] == image
        target = assignment.target[layer][selected].numpy()
        group = assignment.group[layer][selected].numpy()
        query = assignment.query[layer][selected].numpy()
        if count <= queries:
            assert np.bincount(target, minlength=count).tolist() == [groups] * count
        assert len({*zip(group, query)}) == len(query) == groups * min(count, queries)
        costs_of_objects = costs[layer, image, :, :count].swapaxes(0, 1)
        costs_of_copies = np.tile(costs_of_objects.reshape(count, groups * queries), (groups, 1))
        lowest = costs_of_copies[linear_sum_assignment(costs_of_copies)].sum()
        total = costs[layer, image, group, target, query].sum()
        assert total == pytest.approx(lowest, abs=1e-3)


def test_the_normaliser_is_clamped_before_it_is_multiplied_by_k() -> None:
    assert loss_normaliser(11, torch.tensor(7.5)) == 11 * 7.5
    assert loss_normaliser(11, torch.tensor(0.0)) == 11
    assert loss_normaliser(1, torch.tensor(0.25)) == 1


def test_inference_runs_one_group_or_all() -> None:
    groups = torch.randn(4, 5, 6)
    assert torch.equal(groups[inference_groups(2)], groups[2:3])
    assert torch.equal(groups[inference_groups(None)], groups)


def test_flattened_groups_are_a_view_in_order() -> None:
    queries = torch.randn(2, 3, 4, 5)
    flattened = flatten_groups(queries)
    assert torch.equal(flattened[:, 4:8], queries[:, 1])
    assert flattened.data_ptr() == queries.data_ptr()


def test_attention_gets_groups_as_batch_or_all_queries_as_one_sequence() -> None:
    shapes = []

    def attention(content: Tensor, position: Tensor, blocked: Tensor | None) -> Tensor:
        shapes.append(content.shape)
        assert blocked is None
        return content + position

    content, position = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    for group_attention in (attend_within_groups, attend_across_groups):
        assert torch.equal(group_attention(attention, content, position), content + position)
    assert shapes == [(2, 3, 4, 5), (2, 1, 12, 5)]
