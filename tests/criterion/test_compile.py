"""torch.compile of costs and losses, whatever the number of objects: the same losses and gradients, and few graphs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.structures.outputs import Outputs

from .samples import criterion, outputs, targets

FIRST = [(7, 7), (3, 5), (0, 0), (1, 0), (60, 20)]  # some number, any number, none, few, a crowd
LATER = [(0, 2), (2, 2), (11, 11), (0, 0), (1, 1), (30, 1), (6, 12)]
KNOWN = pytest.mark.parametrize(
    ("known", "most"), [(False, 5), (True, 10)], ids=["plain", "proposals and denoising"]
)


@pytest.fixture(autouse=True)
def _from_the_start() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(**options: object) -> SetCriterion:
    found = criterion()
    found.compile_parts(fullgraph=True, **options)
    return found


def learned(compare: SetCriterion, said: Outputs, counts: tuple[int, int]) -> list[torch.Tensor]:
    """The losses, and their gradients by the predictions of all layers."""
    torch.manual_seed(1)
    losses = list(compare(said, targets(*counts)).values())
    leaves = [x for layer in said.layers for x in (layer.logits, layer.boxes)]
    return [*losses, *torch.autograd.grad(losses, leaves, [torch.ones(())] * len(losses))]


def expect_the_same(compare: SetCriterion, counts: tuple[int, int], known: bool) -> None:
    said = outputs(11, queries=20, counts=counts if known else None)
    for ours, plain in zip(learned(compare, said, counts), learned(criterion(), said, counts)):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-6)


def expect_few_graphs(compare: SetCriterion, known: bool, most: int) -> None:
    for counts in FIRST:
        expect_the_same(compare, counts, known)
    settled = counters["stats"]["unique_graphs"]
    assert settled <= most
    for counts in LATER:
        expect_the_same(compare, counts, known)
    assert counters["stats"]["unique_graphs"] == settled


@pytest.mark.slow
@pytest.mark.fair_sample
@KNOWN
def test_a_few_graphs_serve_any_number_of_objects(known: bool, most: int) -> None:
    expect_few_graphs(compiled(backend="aot_eager"), known, most)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs a C++ compiler")
@KNOWN
def test_a_few_kernels_serve_any_number_of_objects(known: bool, most: int) -> None:
    expect_few_graphs(compiled(), known, most)
