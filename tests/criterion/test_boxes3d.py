"""Encoded 3D boxes: the matching cost ignores the velocity; in the loss it has its weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groupdetr.criterion.boxes3d import EncodedBoxes3D, EncodedBoxL1
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.pairs import AllBoxPairs, ObjectTotals
from groupdetr.ops.boxes3d import encode_boxes3d
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Target, TargetBatch

COUNTS = (2, 3)


def boxes(count: int) -> Tensor:
    centres, sizes = torch.randn(count, 3) * 9, torch.rand(count, 3) + 0.5
    yaw_and_velocity = torch.randn(count, 3)
    return torch.cat([centres, sizes, yaw_and_velocity], dim=1)


@pytest.fixture
def targets() -> TargetBatch:
    torch.manual_seed(0)
    return TargetBatch.from_targets([Target(torch.arange(n), boxes(n)) for n in COUNTS])


@pytest.fixture
def predictions() -> Predictions:
    torch.manual_seed(1)
    return Predictions(torch.randn(2, 2, 3, 5, 4), torch.randn(2, 2, 3, 5, 10))


def all_pairs(predictions: Predictions, targets: TargetBatch) -> AllBoxPairs:
    pair_builder = EncodedBoxes3D()
    return pair_builder.all_pairs(*pair_builder.cost_inputs(predictions, targets))


def test_costs_are_the_distances_of_the_first_eight_numbers(
    targets: TargetBatch, predictions: Predictions
) -> None:
    cost = EncodedBoxL1(1.0, 1.0, velocity=0.2).cost(all_pairs(predictions, targets))
    assert cost.shape == (2, 2, 3, 3, 5)
    for image, count in enumerate(COUNTS):
        encoded = encode_boxes3d(targets.boxes[image, :count])[:, :8].expand(2, 3, -1, -1)
        expected = torch.cdist(encoded, predictions.boxes[:, image, ..., :8], p=1)
        assert torch.allclose(cost[:, image, :, :count], expected, atol=1e-4)


@pytest.mark.parametrize("velocity", [0.2, 1.0])
def test_losses_are_the_weighted_distances_of_all_ten_numbers(
    targets: TargetBatch, predictions: Predictions, velocity: float
) -> None:
    assignment = Assignment(torch.tensor([[[0, 1]] * 2, [[2, 0]] * 2, [[4, 1]] * 2, [[1, 2]] * 2]))
    objects = ObjectTotals(torch.tensor(5.0), torch.tensor(5.0), parts=1)
    pairs = EncodedBoxes3D().matched_pairs(predictions, targets, assignment, objects)
    weights = torch.tensor([1.0] * 8 + [velocity] * 2)
    target = encode_boxes3d(torch.stack([targets.boxes[0, 1], targets.boxes[1, 2]]))
    pred = torch.stack([predictions.boxes[:, 0, 2, 4], predictions.boxes[:, 1, 0, 1]], dim=1)
    expected = ((pred - target).abs() * weights).sum((1, 2))
    assert torch.allclose(EncodedBoxL1(1.0, 1.0, velocity).loss(pairs), expected, rtol=1e-5)


def test_the_cost_of_a_class_is_finite_for_any_logit(
    targets: TargetBatch, predictions: Predictions
) -> None:
    predictions.logits[:] = torch.tensor([-200.0, 200.0, -90.0, 90.0])
    cost = Focal(1.0, 1.0, eps=1e-12).cost(all_pairs(predictions, targets))
    assert cost.isfinite().all()
    assert cost.max().item() == pytest.approx(0.25 * 27.631, rel=1e-3)  # -log(1e-12) = 27.631
