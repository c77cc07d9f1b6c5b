"""Codes of boxes in space: in matching velocity is of no account, in learning it has its weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groupdetr.criterion.boxes3d import CodeL1, Codes
from groupdetr.criterion.classification import Focal
from groupdetr.ops.boxes3d import box_to_code
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects, Target

COUNTS = (2, 3)


def boxes(count: int) -> Tensor:
    return torch.cat(
        [torch.randn(count, 3) * 9, torch.rand(count, 3) + 0.5, torch.randn(count, 3)], dim=1
    )


@pytest.fixture
def objects() -> Objects:
    torch.manual_seed(0)
    return Objects.from_targets([Target(torch.arange(n), boxes(n)) for n in COUNTS])


@pytest.fixture
def predictions() -> Predictions:
    torch.manual_seed(1)
    return Predictions(torch.randn(2, 2, 3, 5, 4), torch.randn(2, 2, 3, 5, 10))


def test_costs_are_the_distances_of_the_first_eight_numbers(
    objects: Objects, predictions: Predictions
) -> None:
    pairing = Codes()
    cost = CodeL1(1.0, 1.0, velocity=0.2).cost(pairing.all(*pairing.lay_out(predictions, objects)))
    assert cost.shape == (2, 2, 3, 3, 5)
    for image, count in enumerate(COUNTS):
        wanted = box_to_code(objects.boxes[image, :count])[:, :8]
        expected = torch.cdist(
            wanted.expand(2, 3, -1, -1), predictions.boxes[:, image, ..., :8], p=1
        )
        assert torch.allclose(cost[:, image, :, :count], expected, atol=1e-4)


@pytest.mark.parametrize("velocity", [0.2, 1.0])
def test_losses_are_the_weighted_distances_of_all_ten(
    objects: Objects, predictions: Predictions, velocity: float
) -> None:
    assignment = Assignment(torch.tensor([[[0, 1]] * 2, [[2, 0]] * 2, [[4, 1]] * 2, [[1, 2]] * 2]))
    pairs = Codes().matched(predictions, objects, assignment, torch.tensor(2.5))
    weights = torch.tensor([1.0] * 8 + [velocity] * 2)
    wanted = box_to_code(torch.stack([objects.boxes[0, 1], objects.boxes[1, 2]]))
    said = torch.stack([predictions.boxes[:, 0, 2, 4], predictions.boxes[:, 1, 0, 1]], dim=1)
    expected = ((said - wanted).abs() * weights).sum((1, 2))
    assert torch.allclose(CodeL1(1.0, 1.0, velocity).loss(pairs), expected, rtol=1e-5)


def test_the_cost_of_a_class_is_finite_whatever_the_logit(
    objects: Objects, predictions: Predictions
) -> None:
    predictions.logits[:] = torch.tensor([-200.0, 200.0, -90.0, 90.0])
    pairing = Codes()
    cost = Focal(1.0, 1.0, eps=1e-12).cost(pairing.all(*pairing.lay_out(predictions, objects)))
    assert cost.isfinite().all()
    assert cost.max().item() == pytest.approx(0.25 * 27.631, rel=1e-3)  # of log(1e-12)
