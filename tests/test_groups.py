"""The functions of `groups.py`, compared with brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from groupdetr.groups import (
    MultiheadAttentionWithinGroups,
    attend_across_groups,
    attend_within_groups,
    flatten_groups,
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


def test_the_normalisers_of_all_parts_add_up_to_that_of_the_step() -> None:
    """So the clamp at one object belongs to the step, and not to each of its parts."""
    for num_objects in (0.0, 1.0, 3.0, 60.0):
        whole = loss_normaliser(11, torch.tensor(num_objects))
        for parts in (2, 4, 8):
            assert parts * loss_normaliser(11, torch.tensor(num_objects), parts) == whole


@pytest.mark.parametrize(
    ("shape", "counts", "message"),
    [
        ((1, 2, 3, 4, 5), [4], r"counts must be the numbers of objects of 2 images, not \[4\]"),
        ((1, 2, 3, 4, 5), [4, 1, 1], "of 2 images"),
        ((1, 2, 3, 4, 5), [5, 1], r"counts are \[5, 1\], but costs have 4 objects"),
        ((1, 2, 3, 4, 5), [-1, 1], "must be a whole number of 0 or more, not -1"),
        ((2, 3, 4, 5), [4, 1], r"costs must be a NumPy array \[L,B,K,T,N\], not ndarray"),
    ],
)
def test_costs_that_do_not_fit_the_counts_are_refused(
    shape: tuple[int, ...], counts: list[int], message: str
) -> None:
    for match in (match_groups, match_naively):
        with pytest.raises(ValueError, match=message):
            match(np.zeros(shape, dtype=np.float32), counts)


def test_flat_queries_are_not_taken_for_groups() -> None:
    """Their attention would be over all images."""
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    flat = torch.randn(2, 12, 16)
    with pytest.raises(ValueError, match=r"content must be \[B,K,N,C\], not \[2, 12, 16\]"):
        attend_within_groups(attention, flat, flat)


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


# Attention of a decoder that was written without groups

B, K, N, C = 2, 3, 4, 16


def multihead_attention(batch_first: bool, num_heads: int = 4) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(C, num_heads, batch_first=batch_first)
    nn.init.normal_(attention.in_proj_bias)
    return attention


def flat_queries(batch_first: bool) -> tuple[Tensor, Tensor]:
    """Query = key, and value: [B,K*N,C] or [K*N,B,C]."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, B, K * N, C, generator=generator)
    query, value = x if batch_first else x.transpose(1, 2)
    return query, value


attention_masks = pytest.mark.parametrize(
    "mask",
    [None, torch.ones(N, N).triu(1).bool(), torch.linspace(-2, 2, N * N).view(N, N)],
    ids=["no mask", "bool mask", "float mask"],
)
batch_first_or_not = pytest.mark.parametrize("batch_first", [True, False])


@attention_masks
@batch_first_or_not
def test_stock_attention_within_groups_is_k_separate_passes(
    batch_first: bool, mask: Tensor | None
) -> None:
    for training in (True, False):
        stock = multihead_attention(batch_first).train(training)
        within_groups = MultiheadAttentionWithinGroups.convert(stock, num_queries=N)
        query, value = flat_queries(batch_first)
        together, _ = within_groups(query, query, value, attn_mask=mask, need_weights=False)
        axis = 1 if batch_first else 0
        separate = [
            stock(q, q, v, attn_mask=mask, need_weights=False)[0]
            for q, v in zip(query.chunk(K, axis), value.chunk(K, axis))
        ]
        torch.testing.assert_close(together, torch.cat(separate, axis), rtol=0, atol=1e-6)


@batch_first_or_not
def test_one_group_is_plain_attention_with_its_weights(batch_first: bool) -> None:
    stock = multihead_attention(batch_first)
    within_groups = MultiheadAttentionWithinGroups.convert(stock, num_queries=K * N)
    query, value = flat_queries(batch_first)
    for ours, theirs in zip(within_groups(query, query, value), stock(query, query, value)):
        assert torch.equal(ours, theirs)


def test_the_weights_of_attention_within_groups_are_those_of_each_group() -> None:
    stock = multihead_attention(batch_first=True)
    query, value = flat_queries(batch_first=True)
    padding = torch.zeros(B, K * N, dtype=torch.bool)
    padding[1, N + 1] = True  # query 1 of group 1 of image 1
    _, weights = MultiheadAttentionWithinGroups.convert(stock, N)(query, query, value, padding)
    query, value, padding = (x[:, N : 2 * N] for x in (query, value, padding))
    _, expected = stock(query, query, value, padding)
    torch.testing.assert_close(weights.view(B, K, N, N)[:, 1], expected, rtol=0, atol=1e-6)
    assert not expected[1, :, 1].any()


@pytest.mark.parametrize("bias", [True, False])
def test_converted_attention_has_the_parameters_and_the_checkpoints_of_the_stock_one(
    bias: bool,
) -> None:
    options = {"bias": bias, "add_bias_kv": bias, "batch_first": True, "dropout": 0.25}
    stock = nn.MultiheadAttention(C, 2, **options).eval()
    state = torch.get_rng_state()
    converted = MultiheadAttentionWithinGroups.convert(stock, N)
    assert torch.equal(torch.get_rng_state(), state)
    parameters = dict(converted.named_parameters())
    assert parameters.keys() == dict(stock.named_parameters()).keys()
    assert all(parameters[name] is x for name, x in stock.named_parameters())
    assert converted.dropout == 0.25
    assert not converted.training
    created = MultiheadAttentionWithinGroups(C, 2, N, **options)
    created.load_state_dict(stock.state_dict())
    query, value = flat_queries(batch_first=True)
    torch.testing.assert_close(created.eval()(query, query, value), converted(query, query, value))


class ScaledAttention(nn.MultiheadAttention):
    """An attention of a user, whose result differs from that of its base class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        attended, weights = super().forward(*args, **kwargs)
        return 2 * attended, weights


def test_an_attention_with_a_forward_method_of_its_own_is_not_replaced_by_the_stock_one() -> None:
    with pytest.raises(ValueError, match="this ScaledAttention has a forward method of its own"):
        MultiheadAttentionWithinGroups.convert(ScaledAttention(C, 2), N)
    again = MultiheadAttentionWithinGroups.convert(multihead_attention(batch_first=True), 2 * N)
    assert MultiheadAttentionWithinGroups.convert(again, N).num_queries == N


def test_converted_attention_has_the_hooks_of_the_stock_one() -> None:
    """Their handles still remove them."""
    stock = multihead_attention(batch_first=True)
    calls: list[str] = []
    handles = [
        stock.register_forward_hook(lambda *_: calls.append("after")),
        stock.register_forward_pre_hook(lambda *_: calls.append("before"), with_kwargs=True),
        stock.register_full_backward_hook(lambda *_: calls.append("backward")),
        stock.register_state_dict_post_hook(lambda *_: calls.append("saved")),
    ]
    converted = MultiheadAttentionWithinGroups.convert(stock, N)
    del stock
    query, value = flat_queries(batch_first=True)
    query.requires_grad_()
    converted(query, query, value)[0].sum().backward()
    converted.state_dict()
    assert calls == ["before", "after", "backward", "saved"]
    for handle in handles:
        handle.remove()
    converted(query, query, value)[0].sum().backward()
    converted.state_dict()
    assert len(calls) == 4


def test_an_attention_with_parametrized_weights_is_refused() -> None:
    stock = multihead_attention(batch_first=True)
    nn.utils.parametrizations.weight_norm(stock, "in_proj_weight")
    with pytest.raises(ValueError, match="are computed from other parameters"):
        MultiheadAttentionWithinGroups.convert(stock, N)


@torch.no_grad()
def test_a_layer_that_reads_the_parameters_in_evaluation_mode_attends_within_groups() -> None:
    """`nn.TransformerEncoderLayer` then does not call its attention by itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(C, 2, 8, batch_first=True).eval()
    layer.self_attn = MultiheadAttentionWithinGroups.convert(layer.self_attn, N)
    queries, _ = flat_queries(batch_first=True)
    separate = [layer(group) for group in queries.chunk(K, 1)]
    torch.testing.assert_close(layer(queries), torch.cat(separate, 1), rtol=0, atol=1e-6)


def test_attention_within_groups_refuses_what_are_not_groups_of_n_queries() -> None:
    stock = multihead_attention(batch_first=False)
    attention = MultiheadAttentionWithinGroups.convert(stock, num_queries=5)
    query, _ = flat_queries(batch_first=False)
    with pytest.raises(ValueError, match="12 queries cannot be split into groups of 5"):
        attention(query, query, query)
    with pytest.raises(ValueError, match=r"be \[5, 5\], the mask of one group, not \[12, 12\]"):
        attention(query[:5], query[:5], query[:5], attn_mask=torch.zeros(12, 12))
    with pytest.raises(ValueError, match="three axes"):
        attention(query[:, 0], query[:, 0], query[:, 0])
    with pytest.raises(ValueError, match="the same width, not 16, 8 and 8"):
        MultiheadAttentionWithinGroups.convert(nn.MultiheadAttention(C, 2, kdim=8, vdim=8), N)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_stock_module_attends_within_groups(batch_first: bool) -> None:
    """K groups are K passes of the module, one for each group, with the same mask."""
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(C, 2, batch_first=batch_first)
    content, position = torch.randn(2, B, K, N, C)
    blocked = torch.rand(N, N) > 0.5
    blocked.fill_diagonal_(False)
    attended = attend_within_groups(stock, content, position, blocked)
    for group in range(K):
        queries, values = (content + position)[:, group], content[:, group]
        if not batch_first:
            queries, values = queries.transpose(0, 1), values.transpose(0, 1)
        single, _ = stock(queries, queries, values, attn_mask=blocked)
        single = single if batch_first else single.transpose(0, 1)
        torch.testing.assert_close(attended[:, group], single, rtol=0, atol=1e-6)
