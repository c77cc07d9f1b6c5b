"""The options of DistributedDataParallel fit every detector, whatever objects a batch has."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.distributed import (
    distributed_options,
    has_static_graph,
    without_warning_of_old_name,
)
from groupdetr.modeling.group_chunks import with_loss
from groupdetr.settings import Settings
from tests.claims.detectors import (
    FAST,
    build,
    compute_gradients,
    detector_input,
    random_images,
)

COUNTS = [(4, 2), (0, 0), (1, 5), (3, 3)]  # objects of the two images of every step
QUICK = ("conditional-detr", "dn-detr")  # the other detectors run with the slow tests
CASES = [
    pytest.param(
        recipe, chunk, id=f"{name}, {chunk}", marks=() if name in QUICK else pytest.mark.slow
    )
    for name, recipe in FAST.items()
    for chunk in (None, 2)
]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A group of one process, in which DistributedDataParallel does all that it does in several."""
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(("recipe", "chunk"), CASES)
def test_gradients_are_those_of_the_model_alone(
    recipe: Recipe, chunk: int | None, one_process: None
) -> None:
    settings = Settings(group_chunk=chunk)
    assert has_static_graph(settings)
    model = build(recipe).train()
    alone = deepcopy(model)
    network = with_loss(model, recipe.criterion(), chunk)
    with without_warning_of_old_name():
        wrapped = DistributedDataParallel(network, **distributed_options(settings).to_kwargs())
    plain = with_loss(alone, recipe.criterion(), chunk)
    images = detector_input(recipe, random_images((2, 3), (3, 1)))
    for step, counts in enumerate(COUNTS):
        compute_gradients((wrapped, plain), recipe, images, counts, seed=step)
        for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
            if theirs.grad is None:
                assert ours.grad is None, name
            else:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [Settings(accumulate=2), Settings(groups_per_step=1), Settings(groups_schedule="3:0.5,1:1")],
)
def test_steps_that_differ_have_no_static_graph(settings: Settings) -> None:
    assert not has_static_graph(settings)
