"""The set criterion: which losses there are, how they are matched, weighted and normalised."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal, Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.groups import match_groups
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.step_objects import StepObjects
from groupdetr.structures.targets import Target, TargetBatch

TERMS = ("focal", "l1", "giou")


def outputs(groups: int = 2, queries: int = 4, images: int = 2) -> Outputs:
    torch.manual_seed(0)
    axes = (images, groups, queries)
    layers = [
        Predictions(torch.randn(*axes, 3), torch.rand(*axes, 4) * 0.4 + 0.2) for _ in range(3)
    ]
    zeros = torch.zeros(*axes, 8)
    return Outputs(layers, Queries(zeros, torch.zeros(*axes, 2), zeros))


def targets(*counts: int) -> list[Target]:
    return [
        Target(torch.zeros(n, dtype=torch.int64), torch.full((n, 4), 0.3) + 0.1 * torch.rand(n, 4))
        for n in counts
    ]


def criterion(focal: float = 2.0) -> SetCriterion:
    return SetCriterion([Focal(2.0, focal), L1(5.0, 5.0), GIoU(2.0, 2.0)], match_groups)


def test_every_layer_has_a_loss_for_every_term() -> None:
    losses = criterion()(outputs(), targets(2, 1))
    assert list(losses) == [f"layer{i}/{term}" for term in TERMS for i in range(3)]


def test_every_layer_is_matched_on_its_own() -> None:
    predicted, annotated = outputs(), targets(2, 1)
    together = criterion()(predicted, annotated)
    for i, layer in enumerate(predicted.layers):
        alone = criterion()(Outputs([layer], predicted.queries), annotated)
        for term in TERMS:
            expected = alone[f"layer0/{term}"].item()
            assert together[f"layer{i}/{term}"].item() == pytest.approx(expected, rel=1e-6)


def test_a_loss_weight_scales_its_own_loss_only() -> None:
    one, three = (criterion(weight)(outputs(), targets(2, 1)) for weight in (1.0, 3.0))
    for name in one:
        factor = 3 if "focal" in name else 1
        assert three[name].item() == pytest.approx(factor * one[name].item(), rel=1e-6)


def test_losses_are_divided_by_the_objects_of_the_whole_step() -> None:
    """That is their number in all images of the step, divided by the number of its parts."""
    default = criterion()(outputs(), targets(2, 1))
    step = StepObjects([2, 1, 20, 1], parts=2)
    given = criterion()(outputs(), targets(2, 1), step)
    for name in default:
        assert given[name].item() == pytest.approx(default[name].item() * 3 / (24 / 2), rel=1e-6)


def test_the_losses_of_a_batch_are_the_sum_of_those_of_its_images() -> None:
    """The padding of an image with fewer objects changes neither its matching nor its losses."""
    predicted, annotated, step = outputs(), targets(2, 4), StepObjects([2, 4])
    both = criterion()(predicted, annotated, step)
    alone = []
    for image, target in enumerate(annotated):
        layers = [layer[image : image + 1] for layer in predicted.layers]
        alone.append(criterion()(Outputs(layers, predicted.queries), [target], step))
    for name in both:
        expected = alone[0][name].item() + alone[1][name].item()
        assert both[name].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classification", [Focal(2, 2), Softmax(1, 1)], ids=lambda x: x.name)
@pytest.mark.parametrize("pairs_at_once", [1, 20, 50, 1000])
def test_costs_in_blocks_are_those_that_are_computed_at_once(
    classification: Focal | Softmax, pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block has some of the layers and of the five groups of one image, and at least one group.

    Three objects have two classes, one image has no object, and the padding costs nothing.
    """
    matcher = SetCriterion([classification, L1(5, 5), GIoU(2, 2)]).matcher
    predicted, annotated = outputs(groups=5, images=3), TargetBatch.from_targets(targets(2, 3, 0))
    annotated.labels[1, :3] = torch.tensor([1, 0, 1])
    (supervised,) = predicted.supervised()
    with torch.no_grad():
        inputs = matcher.pair_builder.cost_inputs(supervised.predictions, annotated)
        at_once = matcher.cost(*inputs).numpy()
    blocks: list[tuple[int, ...]] = []
    add_to = matcher.cost.add_to

    def recorded(costs: Tensor, *cost_inputs: Tensor | None) -> None:
        blocks.append(tuple(costs.shape))
        add_to(costs, *cost_inputs)

    monkeypatch.setattr(matcher.cost, "add_to", recorded)
    monkeypatch.setattr("groupdetr.criterion.matcher.MIN_PAIRS_FOR_BLOCKS", 0)
    monkeypatch.setattr("groupdetr.criterion.matcher.MAX_PAIRS_AT_ONCE", pairs_at_once)
    in_blocks = matcher.costs(supervised, annotated)

    assert in_blocks.shape == (3, 3, 5, 3, 4)
    for image, count in enumerate(annotated.counts):
        expected, ours = at_once[:, image, :, :count], in_blocks[:, image, :, :count]
        assert np.allclose(ours, expected, rtol=0, atol=1e-6)
        assert not in_blocks[:, image, :, count:].any()
    assert sum(map(math.prod, blocks)) == 3 * 5 * (2 + 3) * 4
    for layers, images, groups, objects, queries in blocks:
        assert images == 1
        pairs = layers * groups * objects * queries
        assert pairs <= pairs_at_once or layers == groups == 1
