"""Every term of boxes, as cost and as loss, against torchvision or the written-out formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal, FocalLoss, IoUAwareBCE, IoUAwareLoss
from groupdetr.criterion.pairs import (
    AllBoxPairs,
    MatchedBoxPairs,
    gather_all_pairs,
    gather_matched_pairs,
)
from groupdetr.criterion.term import Term
from groupdetr.engine.memory import HostMeter
from groupdetr.errors import UsageError
from groupdetr.groups import match_groups
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Target, TargetBatch

LAYERS, GROUPS, QUERIES, CLASSES = 2, 3, 5, 4
COUNTS = (3, 0, 6)
TERMS: list[Term] = [Focal(1.0, 1.0), L1(1.0, 1.0), GIoU(1.0, 1.0)]


def boxes(*shape: int) -> Tensor:
    centres, sizes = torch.rand(*shape, 2) * 0.5 + 0.25, torch.rand(*shape, 2) * 0.4 + 0.05
    return torch.cat([centres, sizes], dim=-1)


@pytest.fixture
def targets() -> TargetBatch:
    torch.manual_seed(0)
    return TargetBatch.from_targets(
        [Target(torch.randint(0, CLASSES, (n,)), boxes(n)) for n in COUNTS]
    )


@pytest.fixture
def predictions() -> Predictions:
    torch.manual_seed(1)
    axes = (LAYERS, len(COUNTS), GROUPS, QUERIES)
    logits = 2 * torch.randn(*axes, CLASSES)
    return Predictions(logits.requires_grad_(), boxes(*axes).requires_grad_())


@pytest.fixture
def all_pairs(predictions: Predictions, targets: TargetBatch) -> AllBoxPairs:
    with torch.no_grad():
        return AllBoxPairs(*gather_all_pairs(predictions, targets))


@pytest.fixture
def assignment(all_pairs: AllBoxPairs, targets: TargetBatch) -> Assignment:
    with torch.no_grad():
        costs = torch.stack([term.cost(all_pairs) for term in TERMS]).sum(0)
    return match_groups(costs.numpy(), targets.counts)


@pytest.fixture
def matched_pairs(
    predictions: Predictions, targets: TargetBatch, assignment: Assignment
) -> MatchedBoxPairs:
    return gather_matched_pairs(predictions, targets, assignment)


def test_the_focal_cost_is_that_of_deformable_detr(
    all_pairs: AllBoxPairs, predictions: Predictions, targets: TargetBatch
) -> None:
    cost = Focal(2.0, 2.0).cost(all_pairs)
    for layer, image, group, target, query in ((0, 0, 0, 0, 0), (1, 2, 2, 5, 4), (1, 0, 1, 2, 3)):
        label = int(targets.labels[image, target])
        p = 1 / (1 + math.exp(-predictions.logits[layer, image, group, query, label].item()))
        positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
        negative = 0.75 * p**2 * -math.log(1 - p + 1e-8)
        ours = cost[layer, image, group, target, query].item()
        assert ours == pytest.approx(positive - negative, abs=1e-6)


def test_box_costs_are_those_of_torchvision(
    all_pairs: AllBoxPairs, predictions: Predictions, targets: TargetBatch
) -> None:
    l1, giou = L1(5.0, 5.0).cost(all_pairs), GIoU(2.0, 2.0).cost(all_pairs)
    for layer, image, group in ((0, 0, 0), (1, 2, 2)):
        pred, target = predictions.boxes[layer, image, group], targets.boxes[image]
        assert torch.allclose(l1[layer, image, group], torch.cdist(target, pred, p=1), atol=1e-6)
        corners = [torchvision.ops.box_convert(x, "cxcywh", "xyxy") for x in (target, pred)]
        expected = 1 - torchvision.ops.generalized_box_iou(*corners)
        assert torch.allclose(giou[layer, image, group], expected, atol=1e-6)


def test_the_focal_loss_and_its_gradient_are_those_of_torchvision(
    matched_pairs: MatchedBoxPairs,
    predictions: Predictions,
    targets: TargetBatch,
    assignment: Assignment,
) -> None:
    loss = Focal(2.0, 2.0).loss(matched_pairs)
    one_hot = torch.zeros_like(predictions.logits)
    columns = (assignment.image, assignment.group, assignment.query, assignment.target)
    for layer in range(LAYERS):
        for image, group, query, target in zip(*(column[layer] for column in columns)):
            one_hot[layer, image, group, query, targets.labels[image, target]] = 1
    elementwise = torchvision.ops.sigmoid_focal_loss(
        predictions.logits, one_hot, alpha=0.25, gamma=2
    )
    expected = elementwise.flatten(1).sum(1)
    assert torch.allclose(loss, expected, rtol=1e-5)

    # Different weights of the layers: every layer has a gradient of its own.
    weights = torch.tensor([1.0, -2.5])
    (ours,) = torch.autograd.grad((loss * weights).sum(), predictions.logits)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), predictions.logits)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_iou_aware_loss_and_its_gradient_are_those_of_its_formula(
    matched_pairs: MatchedBoxPairs,
    predictions: Predictions,
    targets: TargetBatch,
    assignment: Assignment,
) -> None:
    """As in LW-DETR, with torchvision's IoU. The boxes get no gradient."""
    loss = IoUAwareBCE(2.0, 1.0).loss(matched_pairs)
    score = predictions.logits.sigmoid()
    positive_weight, negative_weight = torch.zeros_like(score), score**2
    columns = (assignment.image, assignment.group, assignment.query, assignment.target)
    for layer in range(LAYERS):
        for image, group, query, target in zip(*(column[layer] for column in columns)):
            box = predictions.boxes[layer, image, group, query], targets.boxes[image, target]
            corners = [torchvision.ops.box_convert(x[None], "cxcywh", "xyxy") for x in box]
            iou = torchvision.ops.box_iou(*corners)[0, 0]
            index = (layer, image, group, query, targets.labels[image, target])
            quality = (score[index] ** 0.25 * iou**0.75).clamp(min=0.01).detach()
            positive_weight = positive_weight.index_put(tensors(index), quality)
            negative_weight = negative_weight.index_put(tensors(index), 1 - quality)
    log_score, log_complement = score.log(), (1 - score).log()
    expected = -(positive_weight * log_score + negative_weight * log_complement)
    expected = expected.flatten(1).sum(1)
    assert torch.allclose(loss, expected, rtol=1e-5)

    weights = torch.tensor([1.0, -2.5])
    (ours,) = torch.autograd.grad((loss * weights).sum(), predictions.logits)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), predictions.logits)
    assert torch.allclose(ours, theirs, atol=1e-6)


def tensors(index: tuple[int | Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(i) for i in index)


def test_the_iou_aware_loss_is_finite_for_certain_and_wrong_predictions() -> None:
    x = torch.tensor([[-200.0, 200.0, -200.0, 200.0]]).requires_grad_()
    positives = (torch.tensor([0, 0]), torch.tensor([0, 1]))
    loss = IoUAwareLoss.apply(x, positives, torch.tensor([1.0, 0.01]), 2.0)
    assert loss.item() == pytest.approx(200 + 0.99 * 200 + 0 + 200)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.allclose(gradient, torch.tensor([[-1.0, 0.99, 0.0, 1.0]]), atol=1e-6)


POSITIVES = (torch.tensor([0, 0]), torch.tensor([3, 9]))  # index into logits [1,13]


def test_the_focal_loss_has_the_gradient_of_its_formula_for_any_logit() -> None:
    x = torch.linspace(-40, 40, 401).reshape(1, -1).requires_grad_()
    all_positive = (torch.zeros(401, dtype=torch.int64), torch.arange(401))
    for positives in (POSITIVES, all_positive):
        one_hot = torch.zeros_like(x).index_put(positives, torch.tensor(1.0))
        loss = FocalLoss.apply(x, positives, 0.25, 2.0)
        expected = torchvision.ops.sigmoid_focal_loss(x, one_hot, alpha=0.25, gamma=2.0).sum()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        (ours,) = torch.autograd.grad(loss, x)
        (theirs,) = torch.autograd.grad(expected, x)
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 3.5])
def test_the_focal_gradient_equals_finite_differences(gamma: float) -> None:
    """In single precision, because the loss converts every input to it."""
    x = torch.linspace(-3, 3, 13).reshape(1, -1).requires_grad_()
    (gradient,) = torch.autograd.grad(FocalLoss.apply(x, POSITIVES, 0.25, gamma), x)
    step = 1e-2
    for i in range(x.shape[1]):
        nudge = F.one_hot(torch.tensor([i]), x.shape[1]) * step
        low = FocalLoss.apply(x - nudge, POSITIVES, 0.25, gamma).item()
        high = FocalLoss.apply(x + nudge, POSITIVES, 0.25, gamma).item()
        assert gradient[0, i].item() == pytest.approx((high - low) / (2 * step), abs=1e-3)


def test_ignored_queries_have_no_loss_and_no_gradient() -> None:
    x = torch.full((1, 13), -torch.inf).requires_grad_()
    loss = FocalLoss.apply(x, (torch.zeros(0, dtype=torch.int64),) * 2, 0.25, 2.0)
    assert loss == 0
    assert not torch.autograd.grad(loss, x)[0].any()


CLASS_LOSSES = pytest.mark.parametrize(
    ("class_loss", "arguments"),
    [(FocalLoss, (0.25, 2.0)), (IoUAwareLoss, (torch.full((2, 2), 0.7), 2.0))],
    ids=["focal", "IoU-aware"],
)


def logits_and_positives(*shape: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Random logits [2,shape], and an index [2,2] of positives."""
    logits = (2 * torch.randn(2, *shape) - 2).requires_grad_()
    first_and_last = torch.arange(2).expand(2, 2)
    return logits, (torch.arange(2)[:, None], *[-first_and_last] * len(shape))


@CLASS_LOSSES
@pytest.mark.parametrize("logits_at_once", [1, 7, 59])
def test_losses_computed_in_parts_are_those_computed_at_once(
    class_loss: type[torch.autograd.Function],
    arguments: tuple[Any, ...],
    logits_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, positives = logits_and_positives(3, 5, 4)
    results = []
    for limit in (120, logits_at_once):
        monkeypatch.setattr("groupdetr.criterion.classification.MAX_LOGITS_AT_ONCE", limit)
        loss = class_loss.apply(logits, positives, *arguments)
        (gradient,) = torch.autograd.grad(loss, logits, torch.tensor([1.0, -2.5]))
        results.append((loss, gradient))
    (loss, gradient), (loss_in_parts, gradient_in_parts) = results
    assert torch.allclose(loss_in_parts, loss, rtol=1e-6)
    assert torch.allclose(gradient_in_parts, gradient, rtol=1e-5, atol=1e-7)


@CLASS_LOSSES
def test_a_graph_that_is_kept_has_the_same_gradient_every_time(
    class_loss: type[torch.autograd.Function], arguments: tuple[Any, ...]
) -> None:
    logits, positives = logits_and_positives(4)
    loss = class_loss.apply(logits, positives, *arguments).sum() * 3
    gradients = []
    for keep in (True, True, False):
        gradients += torch.autograd.grad(loss, logits, retain_graph=keep)
    first, second, last = gradients
    assert first.all()
    assert torch.equal(second, first)
    assert torch.equal(last, first)


@CLASS_LOSSES
def test_a_second_derivative_is_refused_instead_of_being_wrong(
    class_loss: type[torch.autograd.Function], arguments: tuple[Any, ...]
) -> None:
    """The gradient would be a constant in a penalty of gradients, which has a value all the same.

    Without the refusal, this penalty has a gradient that is not that of torchvision's loss.
    """
    logits, positives = logits_and_positives(4)
    weight = torch.ones(logits.shape[-1], requires_grad=True)
    loss = class_loss.apply(logits * weight, positives, *arguments).sum()
    with pytest.raises(UsageError, match="has no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


@CLASS_LOSSES
def test_losses_of_many_classes_need_the_memory_of_their_gradient_and_a_third(
    class_loss: type[torch.autograd.Function], arguments: tuple[Any, ...]
) -> None:
    shape = (2, 6, 300, 1203)
    _, positives = logits_and_positives(*shape[1:])

    def forward_and_backward() -> None:
        logits = torch.zeros(shape).requires_grad_()
        loss = class_loss.apply(logits, positives, *arguments)
        torch.autograd.grad(loss, logits, torch.tensor([1.0, 0.5]))

    bytes_of_logits = 4 * math.prod(shape)
    peak_of_loss = HostMeter(2**30)(forward_and_backward) - bytes_of_logits
    assert bytes_of_logits < peak_of_loss < 1.3 * bytes_of_logits


def test_box_losses_and_their_gradients_are_those_of_torchvision(
    matched_pairs: MatchedBoxPairs,
    predictions: Predictions,
    targets: TargetBatch,
    assignment: Assignment,
) -> None:
    pred = assignment.gather(predictions.boxes)
    target = targets.boxes[assignment.image, assignment.target]
    corners = [torchvision.ops.box_convert(x, "cxcywh", "xyxy") for x in (pred, target)]
    losses = {
        L1(1.0, 1.0): F.l1_loss(pred, target, reduction="none").sum((1, 2)),
        GIoU(1.0, 1.0): torchvision.ops.generalized_box_iou_loss(*corners, reduction="none").sum(1),
    }
    for term, expected in losses.items():
        loss = term.loss(matched_pairs)
        assert torch.allclose(loss, expected, rtol=1e-4)
        (ours,) = torch.autograd.grad(loss.sum(), predictions.boxes, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected.sum(), predictions.boxes, retain_graph=True)
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
