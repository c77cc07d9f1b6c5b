"""torch.compile for any image sizes: the same losses, no graph breaks, and few graphs."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch._dynamo.utils import counters

from groupdetr.detectors.recipe import Recipe
from groupdetr.modeling.group_chunks import with_loss
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target

from .detectors import FAST, build, detector_input, detector_targets, random_images, random_target

# The graphs of three parts: for the first sizes, any sizes, no padding, and no denoising.
MAX_GRAPHS = 12
SETTLED = 7  # the step after which there are no more graphs
SIZES = [
    ((2, 3), (3, 1)),
    ((3, 1), (4, 2)),
    ((2, 3), (2, 3)),
    ((3, 4), (3, 4)),
    ((1, 4), (5, 2)),
    ((5, 2), (2, 4)),
    ((4, 4), (3, 5)),
    ((4, 1), (4, 1)),
    ((2, 5), (4, 3)),
    ((3, 3), (1, 2)),
]
COUNTS = [(4, 2), (1, 7), (0, 0), (2, 5), (0, 0), (5, 0), (3, 3), (6, 1), (2, 2), (8, 4)]
BATCHES = [random_images(*sizes) for sizes in SIZES]
CASES = [
    pytest.param(recipe, chunk, id=f"{name}, {chunk} at once")
    for chunk, (name, recipe) in product((3, 2), FAST.items())
]


def steps() -> Iterator[tuple[Images, list[Target]]]:
    for batch, counts in zip(BATCHES, COUNTS):
        yield batch, [random_target(count, seed) for seed, count in enumerate(counts)]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "chunk"), CASES)
def test_a_few_graphs_serve_all_sizes_and_change_no_loss(recipe: Recipe, chunk: int) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = build(recipe).train()
    compiled = deepcopy(model)
    compiled.compile_parts(backend="aot_eager")
    models_with_loss = [with_loss(m, recipe.criterion(), chunk) for m in (model, compiled)]
    graphs = []
    for number, (batch, targets) in enumerate(steps()):
        losses = []
        for model_with_loss in models_with_loss:
            torch.manual_seed(number)  # for the noise of denoising
            loss, _ = model_with_loss(
                detector_input(recipe, batch), detector_targets(recipe, targets)
            )
            loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert graphs[SETTLED] == graphs[-1] <= MAX_GRAPHS
