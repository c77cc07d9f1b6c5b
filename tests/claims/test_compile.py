"""torch.compile, whatever the sizes: the same losses, no break in a graph, and few graphs."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch._dynamo.utils import counters

from groupdetr.detectors.recipe import Recipe
from groupdetr.modeling.group_chunks import learner
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target

from .conftest import FAST
from .detectors import build, images, shown, target, told

MOST = 12  # graphs of three parts: of the first sizes, of any, without padding, without denoising
SETTLED = 7  # steps after which there are no more
SIZES = [((2, 3), (3, 1)), ((3, 1), (4, 2)), ((2, 3), (2, 3)), ((3, 4), (3, 4)), ((1, 4), (5, 2))]
SIZES += [((5, 2), (2, 4)), ((4, 4), (3, 5)), ((4, 1), (4, 1)), ((2, 5), (4, 3)), ((3, 3), (1, 2))]
BATCHES = [images(*pair) for pair in SIZES]
COUNTS = [(4, 2), (1, 7), (0, 0), (2, 5), (0, 0), (5, 0), (3, 3), (6, 1), (2, 2), (8, 4)]
CASES = [
    pytest.param(
        recipe, chunk, id=f"{name}, {chunk} at once", marks=pytest.mark.fair_sample if not i else ()
    )
    for i, (chunk, (name, recipe)) in enumerate(product((3, 2), FAST.items()))
]


def steps() -> Iterator[tuple[Images, list[Target]]]:
    for batch, counts in zip(BATCHES, COUNTS):
        yield batch, [target(count, seed) for seed, count in enumerate(counts)]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "chunk"), CASES)
def test_a_few_graphs_serve_all_sizes_and_change_no_loss(recipe: Recipe, chunk: int) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = build(recipe).train()
    compiled = deepcopy(model)
    compiled.compile_parts(backend="aot_eager")
    learners = [learner(m, recipe.criterion(), chunk) for m in (model, compiled)]
    graphs = []
    for number, (batch, targets) in enumerate(steps()):
        losses = []
        for each in learners:
            torch.manual_seed(number)  # of noise
            loss, _ = each(shown(recipe, batch), told(recipe, targets))
            loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert graphs[SETTLED] == graphs[-1] <= MOST
