"""`isolation` measures any module: it accepts separate groups, and notices every kind of leak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from groupdetr.analysis.isolation import DetectorIsolation, Tensors, isolation
from groupdetr.analysis.isolation import measure as measure_detector
from groupdetr.groups import MultiheadAttentionWithinGroups
from groupdetr.registry import create_model

B, K, N, C = 2, 3, 4, 16
# (queries [B,K*N,C]) -> queries of the same shape
Attention = Callable[[Tensor], Tensor]


def random_queries(num_values: int = C) -> Tensor:
    return torch.randn(B, K * N, num_values, generator=torch.Generator().manual_seed(0))


def self_attention() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(C, 2, batch_first=True).eval()


STOCK = self_attention()
WITHIN_GROUPS = MultiheadAttentionWithinGroups.convert(STOCK, num_queries=N)


def attend(x: Tensor) -> Tensor:
    return STOCK(x, x, x)[0]


def within_groups(x: Tensor) -> Tensor:
    return WITHIN_GROUPS(x, x, x)[0]


def reshaped_to_groups_last(x: Tensor) -> Tensor:
    """[K*N,B,C] is reshaped to [N,K*B,C]: sequences of every K-th query."""
    flat = x.transpose(0, 1)
    sequences = flat.reshape(N, -1, C).transpose(0, 1)
    return attend(sequences).transpose(0, 1).reshape(flat.shape).transpose(0, 1)


def reshaped_to_groups_first(x: Tensor) -> Tensor:
    """[K*N,B,C] is reshaped to [K*B,N,C]: a sequence has queries of one group, but of two images.

    So no group changes another one, and a single group is computed in the same way.
    """
    flat = x.transpose(0, 1)
    return attend(flat.reshape(-1, N, C)).reshape(flat.shape).transpose(0, 1)


def split_and_undone(x: Tensor) -> Tensor:
    """As in detrex: a reshape undoes the split, and the results stay in the order of the rows."""
    flat = x.transpose(0, 1)
    split = torch.cat(flat.split(N), dim=1)  # [N,K*B,C]
    return attend(split.reshape(flat.shape).transpose(0, 1))


def normalised_over_queries(x: Tensor) -> Tensor:
    """A batch norm in training mode: its statistics are those of all queries and images."""
    return within_groups(nn.BatchNorm1d(C)(x.mT).mT)


def embedded_by_index(x: Tensor) -> Tensor:
    """The index in the flat sequence is embedded, so alone, a group is not as in training."""
    index = torch.arange(x.shape[1]).view(1, -1, 1)
    return within_groups(x + 0.1 * index)


def measure(attention: Attention) -> tuple[bool, bool, bool]:
    """Whether the groups leak, whether separate passes differ, and whether isolation holds."""
    result = isolation(attention, random_queries(), num_groups=K)
    return result.leak > 1e-3, result.separate_passes > 1e-3, result.holds


def test_separate_groups_are_isolated() -> None:
    result = isolation(within_groups, random_queries(), num_groups=K)
    assert result.holds
    assert result.leak == 0
    assert result.separate_passes < 1e-5


@pytest.mark.parametrize(
    ("attention", "leaks", "passes_differ"),
    [
        (attend, True, True),
        (reshaped_to_groups_last, True, True),
        (reshaped_to_groups_first, True, False),
        (split_and_undone, True, True),
        (normalised_over_queries, True, True),
        (embedded_by_index, False, True),
    ],
)
def test_every_kind_of_leak_is_noticed(
    attention: Attention, leaks: bool, passes_differ: bool
) -> None:
    assert measure(attention) == (leaks, passes_differ, False)


def test_several_queries_and_nested_outputs_of_all_layers_are_measured() -> None:
    """Only the second tensor of queries leaks, and only into the last of the outputs."""
    content, reference = random_queries(), random_queries(4).sigmoid()

    def forward(leak: float) -> Callable[[Tensor, Tensor], Tensors]:
        def decode(content: Tensor, reference: Tensor) -> Tensors:
            assert reference.min() >= 0, "reference points remain within the image"
            assert reference.max() <= 1
            hidden = torch.stack([content, within_groups(content)])  # [L,B,K*N,C]
            boxes = reference + leak * reference.mean(1, keepdim=True)
            return {"logits": hidden, "others": [{"boxes": boxes}]}

        return decode

    assert isolation(forward(leak=0), [content, reference], K).holds
    leaking = isolation(forward(leak=0.1), (content, reference), K)
    assert 1e-3 < leaking.leak < 0.1


def test_the_module_and_its_random_numbers_stay_as_they_are() -> None:
    queries, state = random_queries(), torch.get_rng_state()
    before = queries.clone()
    isolation(within_groups, queries.requires_grad_(), num_groups=K)
    assert torch.equal(queries, before)
    assert torch.equal(torch.get_rng_state(), state)


class NormedQueries(nn.Module):
    """A batch norm over queries."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(C)

    def forward(self, queries: Tensor) -> Tensor:
        return within_groups(self.norm(queries.mT).mT)


def test_the_leak_of_a_batch_norm_is_not_hidden_by_evaluation_mode() -> None:
    """In evaluation mode its statistics are fixed, and the groups would seem to be isolated."""
    model, queries = NormedQueries(), random_queries()
    assert not isolation(model, queries, K).holds
    assert not isolation(model, num_groups=K, inputs=queries).holds
    model.eval()
    with pytest.raises(ValueError, match="a BatchNorm1d of the queries is in evaluation mode"):
        isolation(model, queries, K)
    with pytest.raises(ValueError, match=r"in evaluation mode.*model.train\(\)"):
        isolation(model, num_groups=K, inputs=queries)
    model.norm.requires_grad_(False)  # frozen, so it is the same in training
    assert isolation(model, queries, K).holds
    assert isolation(model, num_groups=K, inputs=queries).holds


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: 0 * x, "do not depend on the queries: other queries in group 0 of image 0"),
        (lambda x: torch.cat([x[:, :N], 0 * x[:, N:]], 1), "other queries in group 1 of image 0"),
        (lambda x: x / 0, "an output of forward is not finite"),
        (nn.Dropout(0.5), "two passes with the same queries differ; turn off dropout"),
        (lambda x: x.transpose(0, 1), r"B,K\*N = \[2, 12\] for as many queries, not \[12, 2, 16\]"),
        (lambda x: x[:, :N], r"not \[2, 4, 16\]"),
        (lambda _: [], "at least one tensor"),
        (lambda _: 3, "must return tensors"),
    ],
)
def test_a_measurement_that_would_prove_nothing_is_refused(
    forward: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        isolation(forward, random_queries(), num_groups=K)


@pytest.mark.parametrize(
    ("queries", "num_groups", "message"),
    [
        (random_queries(), 1, "with 1 groups there is nothing to isolate"),
        (random_queries(), 5, "12 queries cannot be split into 5 groups"),
        (random_queries()[:1], K, "2 images or more"),
        (random_queries()[0], K, r"use weight.expand\(B, -1, -1\)"),
        ([random_queries(), random_queries()[:, :N]], K, r"not \[2, 12, 16\], \[2, 4, 16\]"),
        ([], K, "queries must be"),
        (random_queries().long(), K, "floating-point numbers, not torch.int64"),
        ([random_queries(), 3], K, r"queries must be tensors .* not int"),
        (random_queries(), 3.0, "num_groups must be a whole number of 1 or more, not 3.0"),
    ],
)
def test_queries_that_are_not_groups_are_refused(
    queries: Any, num_groups: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        isolation(within_groups, queries, num_groups)


def test_a_detector_whose_boxes_are_nan_is_not_isolated() -> None:
    """The logits agree, and come first: `max` of 0 and NaN is 0."""
    model = create_model("conditional-detr-tiny", num_groups=2, num_queries=5)
    with torch.no_grad():
        model.get_parameter("decoder.heads.2.regress.layers.2.bias")[0] = torch.nan
    result = measure_detector(model, side=32)
    assert result == DetectorIsolation(torch.inf, torch.inf, torch.inf)
    assert not result.holds
