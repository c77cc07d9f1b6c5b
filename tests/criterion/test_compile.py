"""torch.compile of costs and losses for any number of objects: the same values, few graphs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.structures.outputs import Outputs

from .samples import criterion, outputs, targets

# Objects of the two images: a first size, any size, none, few, many.
FIRST = [(7, 7), (3, 5), (0, 0), (1, 0), (60, 20)]
LATER = [(0, 2), (2, 2), (11, 11), (0, 0), (1, 1), (30, 1), (6, 12)]
PLAIN_AND_DENOISING = pytest.mark.parametrize(
    ("with_denoising", "max_graphs"),
    [(False, 5), (True, 10)],
    ids=["plain", "proposals and denoising"],
)


@pytest.fixture(autouse=True)
def _reset_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_criterion(**options: object) -> SetCriterion:
    compiled = criterion()
    compiled.compile_parts(fullgraph=True, **options)
    return compiled


def losses_and_gradients(
    set_criterion: SetCriterion, outputs: Outputs, counts: tuple[int, int]
) -> list[torch.Tensor]:
    """The losses, and their gradients with respect to the predictions of all layers."""
    torch.manual_seed(1)
    losses = list(set_criterion(outputs, targets(*counts)).values())
    leaves = [x for layer in outputs.layers for x in (layer.logits, layer.boxes)]
    return [*losses, *torch.autograd.grad(losses, leaves, [torch.ones(())] * len(losses))]


def assert_equal_to_eager(
    compiled: SetCriterion, counts: tuple[int, int], with_denoising: bool
) -> None:
    sample = outputs(11, queries=20, counts=counts if with_denoising else None)
    ours = losses_and_gradients(compiled, sample, counts)
    eager = losses_and_gradients(criterion(), sample, counts)
    for a, b in zip(ours, eager):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def assert_few_graphs(compiled: SetCriterion, with_denoising: bool, max_graphs: int) -> None:
    for counts in FIRST:
        assert_equal_to_eager(compiled, counts, with_denoising)
    graphs_after_first = counters["stats"]["unique_graphs"]
    assert graphs_after_first <= max_graphs
    for counts in LATER:
        assert_equal_to_eager(compiled, counts, with_denoising)
    assert counters["stats"]["unique_graphs"] == graphs_after_first


@pytest.mark.slow
@pytest.mark.fair_sample
@PLAIN_AND_DENOISING
def test_a_few_graphs_serve_any_number_of_objects(with_denoising: bool, max_graphs: int) -> None:
    assert_few_graphs(compiled_criterion(backend="aot_eager"), with_denoising, max_graphs)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
@PLAIN_AND_DENOISING
def test_a_few_kernels_serve_any_number_of_objects(with_denoising: bool, max_graphs: int) -> None:
    assert_few_graphs(compiled_criterion(), with_denoising, max_graphs)
