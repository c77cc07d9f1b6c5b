"""Every term, as cost and as loss, against torchvision or the formula written out."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal, FocalLoss
from groupdetr.criterion.pairs import AllPairs, MatchedPairs, everyone, matched
from groupdetr.criterion.term import Term
from groupdetr.groups import match_groups
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects, Target

STAGES, GROUPS, QUERIES, CLASSES = 2, 3, 5, 4
COUNTS = (3, 0, 6)
TERMS: list[Term] = [Focal(1.0, 1.0), L1(1.0, 1.0), GIoU(1.0, 1.0)]


def boxes(*shape: int) -> Tensor:
    return torch.cat(
        [torch.rand(*shape, 2) * 0.5 + 0.25, torch.rand(*shape, 2) * 0.4 + 0.05], dim=-1
    )


@pytest.fixture
def objects() -> Objects:
    torch.manual_seed(0)
    return Objects.from_targets([Target(torch.randint(0, CLASSES, (n,)), boxes(n)) for n in COUNTS])


@pytest.fixture
def predictions() -> Predictions:
    torch.manual_seed(1)
    axes = (STAGES, len(COUNTS), GROUPS, QUERIES)
    return Predictions(
        (2 * torch.randn(*axes, CLASSES)).requires_grad_(), boxes(*axes).requires_grad_()
    )


@pytest.fixture
def all_pairs(predictions: Predictions, objects: Objects) -> AllPairs:
    with torch.no_grad():
        return AllPairs(*everyone(predictions, objects))


@pytest.fixture
def assignment(all_pairs: AllPairs, objects: Objects) -> Assignment:
    with torch.no_grad():
        costs = torch.stack([term.cost(all_pairs) for term in TERMS]).sum(0)
    return match_groups(costs.numpy(), objects.counts)


@pytest.fixture
def matched_pairs(
    predictions: Predictions, objects: Objects, assignment: Assignment
) -> MatchedPairs:
    return matched(predictions, objects, assignment)


def test_costs_have_an_axis_for_every_query_and_object(all_pairs: AllPairs) -> None:
    for term in TERMS:
        assert term.cost(all_pairs).shape == (STAGES, len(COUNTS), GROUPS, max(COUNTS), QUERIES)


def test_the_focal_cost_is_that_of_deformable_detr(
    all_pairs: AllPairs, predictions: Predictions, objects: Objects
) -> None:
    cost = Focal(2.0, 2.0).cost(all_pairs)
    for stage, image, group, obj, query in ((0, 0, 0, 0, 0), (1, 2, 2, 5, 4), (1, 0, 1, 2, 3)):
        label = int(objects.labels[image, obj])
        p = 1 / (1 + math.exp(-predictions.logits[stage, image, group, query, label].item()))
        expected = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
        assert cost[stage, image, group, obj, query].item() == pytest.approx(expected, abs=1e-6)


def test_box_costs_are_torchvisions(
    all_pairs: AllPairs, predictions: Predictions, objects: Objects
) -> None:
    l1, giou = L1(5.0, 5.0).cost(all_pairs), GIoU(2.0, 2.0).cost(all_pairs)
    for stage, image, group in ((0, 0, 0), (1, 2, 2)):
        said, wanted = predictions.boxes[stage, image, group], objects.boxes[image]
        corners = [torchvision.ops.box_convert(x, "cxcywh", "xyxy") for x in (wanted, said)]
        assert torch.allclose(l1[stage, image, group], torch.cdist(wanted, said, p=1), atol=1e-6)
        expected = 1 - torchvision.ops.generalized_box_iou(*corners)
        assert torch.allclose(giou[stage, image, group], expected, atol=1e-6)


def test_the_focal_loss_and_its_gradient_are_torchvisions(
    matched_pairs: MatchedPairs, predictions: Predictions, objects: Objects, assignment: Assignment
) -> None:
    found = Focal(2.0, 2.0).loss(matched_pairs)
    wanted = torch.zeros_like(predictions.logits)
    for stage in range(STAGES):
        for image, group, query, obj in zip(
            *(getattr(assignment, n)[stage] for n in ("image", "group", "query", "target"))
        ):
            wanted[stage, image, group, query, objects.labels[image, obj]] = 1
    expected = (
        torchvision.ops.sigmoid_focal_loss(predictions.logits, wanted, alpha=0.25, gamma=2)
        .flatten(1)
        .sum(1)
    )
    assert torch.allclose(found, expected, rtol=1e-5)
    weights = torch.tensor([1.0, -2.5])  # a stage's gradient is its own
    ours, theirs = (
        torch.autograd.grad((x * weights).sum(), predictions.logits)[0] for x in (found, expected)
    )
    assert torch.allclose(ours, theirs, atol=1e-6)


PLACES = [torch.tensor([0, 0]), torch.tensor([3, 9])]  # of [1,13], where the class is present


def test_the_focal_loss_has_the_gradient_of_its_formula_however_sure_it_is() -> None:
    x = torch.linspace(-40, 40, 401).reshape(1, -1).requires_grad_()
    for places in (PLACES, [torch.zeros(401, dtype=torch.int64), torch.arange(401)]):
        wanted = torch.zeros_like(x).index_put(tuple(places), torch.tensor(1.0))
        found = FocalLoss.apply(x, tuple(places), 0.25, 2.0)
        expected = torchvision.ops.sigmoid_focal_loss(x, wanted, alpha=0.25, gamma=2.0).sum()
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        ours, theirs = (torch.autograd.grad(y, x)[0] for y in (found, expected))
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
def test_the_focal_gradient_equals_finite_differences(gamma: float) -> None:
    """In single precision, for the loss is computed in it whatever it is given."""
    x = torch.linspace(-3, 3, 13).reshape(1, -1).requires_grad_()
    (slope,) = torch.autograd.grad(FocalLoss.apply(x, tuple(PLACES), 0.25, gamma), x)
    step = 1e-2
    for i in range(x.shape[1]):
        nudge = F.one_hot(torch.tensor([i]), x.shape[1]) * step
        low, high = (
            FocalLoss.apply(x + sign * nudge, tuple(PLACES), 0.25, gamma).item() for sign in (-1, 1)
        )
        assert slope[0, i].item() == pytest.approx((high - low) / (2 * step), abs=1e-3)


def test_silent_queries_lose_nothing_and_learn_nothing() -> None:
    x = torch.full((1, 13), -torch.inf).requires_grad_()
    loss = FocalLoss.apply(x, (torch.zeros(0, dtype=torch.int64),) * 2, 0.25, 2.0)
    assert loss == 0
    assert not torch.autograd.grad(loss, x)[0].any()


def test_box_losses_and_their_gradients_are_torchs(
    matched_pairs: MatchedPairs, predictions: Predictions, objects: Objects, assignment: Assignment
) -> None:
    said, wanted = (
        assignment.gather(predictions.boxes),
        objects.boxes[assignment.image, assignment.target],
    )
    corners = [torchvision.ops.box_convert(x, "cxcywh", "xyxy") for x in (said, wanted)]
    losses = {
        L1(1.0, 1.0): F.l1_loss(said, wanted, reduction="none").sum((1, 2)),
        GIoU(1.0, 1.0): torchvision.ops.generalized_box_iou_loss(*corners, reduction="none").sum(1),
    }
    for term, expected in losses.items():
        found = term.loss(matched_pairs)
        assert torch.allclose(found, expected, rtol=1e-4)
        slopes = [
            torch.autograd.grad(x.sum(), predictions.boxes, retain_graph=True)[0]
            for x in (found, expected)
        ]
        assert torch.allclose(*slopes, rtol=1e-3, atol=1e-4)
