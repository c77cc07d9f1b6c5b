"""Masks are matched and supervised as in Mask2Former's paper and code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from groupdetr.criterion.classification import Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import Dice, PointCrossEntropy, PointSampledMasks
from groupdetr.groups import match_groups
from groupdetr.structures.masks import CroppedMasks, MaskFeatures
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target, TargetBatch

CLASSES, CHANNELS, POINTS = 5, 8, 64
GROUPS, QUERIES = 3, 7
HEIGHT, WIDTH = 96, 64  # of the padded images
TERMS = [Softmax(2.0, 2.0), PointCrossEntropy(5.0, 5.0), Dice(5.0, 5.0)]


def mask_features(images: int = 2) -> MaskFeatures:
    pixels = torch.randn(images, CHANNELS, HEIGHT // 4, WIDTH // 4).requires_grad_()
    features = MaskFeatures(pixels, torch.tensor([[HEIGHT, WIDTH]] * images))
    return features.with_points(PointSampledMasks(POINTS).num_sampled)


def outputs(layers: int = 2, images: int = 2, groups: int = GROUPS) -> Outputs:
    torch.manual_seed(0)
    features = mask_features(images)
    axes = (images, groups, QUERIES)
    predictions = []
    for _ in range(layers):
        logits = torch.randn(*axes, CLASSES + 1).requires_grad_()
        embedding = (0.5 * torch.randn(*axes, CHANNELS)).requires_grad_()
        predictions.append(Predictions(logits, embedding, features))
    content = torch.zeros(*axes, CHANNELS)
    return Outputs(predictions, Queries(content, content[:1, ..., :0]))


def make_targets(counts: Sequence[int]) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    targets = []
    for count in counts:
        coarse = torch.rand(count, 1, 6, 4, generator=generator)
        masks = F.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")[:, 0] > 0.5
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append(Target(labels, torch.full((count, 4), 0.5), CroppedMasks.from_dense(masks)))
    return targets


def criterion(points: int = POINTS) -> SetCriterion:
    return SetCriterion(TERMS, match_groups, PointSampledMasks(points))


# Independent code: whole masks, sampled by torch.


def sample(masks: Tensor, points: Tensor) -> Tensor:
    """Masks [M,h,w] at points [P,2]: [M,P]."""
    grid = (2 * points - 1).expand(len(masks), 1, -1, -1)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, 0]


def dense(target: Target) -> Tensor:
    """The masks of a target, [T,H,W]."""
    masks = torch.zeros(len(target), HEIGHT, WIDTH)
    assert target.masks is not None
    first = 0
    for mask, (left, top, width, height) in zip(masks, target.masks.windows.tolist()):
        window = target.masks.pixels[first : first + width * height].view(height, width)
        mask[top : top + height, left : left + width] = window
        first += width * height
    return masks


def dice(pred: Tensor, target: Tensor) -> Tensor:
    return 1 - (2 * (pred * target).sum(-1) + 1) / (pred.sum(-1) + target.sum(-1) + 1)


def sampled_points(predictions: Predictions, image: int) -> Tensor:
    points = predictions.masks.mask_features.points
    assert points is not None
    return points[image]


def expected_cost(predictions: Predictions, target: Target, image: int, group: int) -> Tensor:
    """The matching cost [N,T] of one image and group."""
    points = sampled_points(predictions, image)[:POINTS]
    logits = sample(predictions.masks.full()[image, group], points)[:, None]
    labels = sample(dense(target), points)[None].expand(QUERIES, -1, -1)
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits.expand_as(labels), labels, reduction="none"
    ).mean(-1)
    score = predictions.logits[image, group].softmax(-1)[:, target.labels]
    return -2 * score + 5 * cross_entropy + 5 * dice(logits.sigmoid(), labels)


def expected_losses(
    predictions: Predictions, targets: list[Target], num_objects: float
) -> dict[str, Tensor]:
    """Mask2Former's three losses of one layer, averaged over groups."""
    sums = {name: torch.zeros(()) for name in ("softmax", "mask", "dice")}
    class_weights = torch.tensor([1.0] * CLASSES + [0.1])
    for group in range(GROUPS):
        classes = torch.full((len(targets), QUERIES), CLASSES)
        for image, target in enumerate(targets):
            cost = expected_cost(predictions, target, image, group).detach()
            matched_queries, matched_objects = linear_sum_assignment(cost)
            classes[image, matched_queries] = target.labels[matched_objects]
            points = sampled_points(predictions, image)
            masks = predictions.masks.full()[image, group]
            for query, matched in zip(matched_queries, matched_objects):
                logits = sample(masks[query][None], points)[0]
                certainty = logits[: 3 * POINTS].detach().abs()
                uncertain = certainty.argsort()[: 3 * POINTS // 4]
                index = torch.cat([uncertain, torch.arange(3 * POINTS, len(points))])
                labels = sample(dense(target)[matched][None], points[index])[0]
                cross_entropy = F.binary_cross_entropy_with_logits(logits[index], labels)
                sums["mask"] = sums["mask"] + cross_entropy
                sums["dice"] = sums["dice"] + dice(logits[index].sigmoid(), labels)
        class_logits = predictions.logits[:, group].flatten(0, 1)
        cross_entropy = F.cross_entropy(class_logits, classes.flatten(), class_weights)
        sums["softmax"] = sums["softmax"] + cross_entropy
    return {
        "softmax": 2 / GROUPS * sums["softmax"],
        "mask": 5 / (GROUPS * num_objects) * sums["mask"],
        "dice": 5 / (GROUPS * num_objects) * sums["dice"],
    }


# Claims


def test_costs_are_those_of_whole_masks() -> None:
    predicted, targets = outputs(), make_targets((4, 2))
    supervised = predicted.supervised()[0]
    costs = criterion().matcher.costs(supervised, TargetBatch.from_targets(targets))
    for index, layer in enumerate(predicted.layers):
        for image, target in enumerate(targets):
            for group in range(GROUPS):
                expected = expected_cost(layer, target, image, group).detach()
                ours = torch.from_numpy(costs[index, image, group, : len(target)].T)
                assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (QUERIES, 1)])
def test_losses_and_gradients_are_those_of_whole_masks(counts: tuple[int, int]) -> None:
    predicted, targets = outputs(), make_targets(counts)
    losses = criterion()(predicted, targets)
    expected = {}
    for index, layer in enumerate(predicted.layers):
        for name, value in expected_losses(layer, targets, sum(counts)).items():
            expected[f"layer{index}/{name}"] = value
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name

    leaves = [x for layer in predicted.layers for x in (layer.logits, layer.location)]
    leaves.append(predicted.layers[0].masks.mask_features.pixels)
    ours = torch.autograd.grad(sum(losses.values()), leaves, retain_graph=True)
    theirs = torch.autograd.grad(sum(expected.values()), leaves, retain_graph=True)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max().item())


def test_equal_groups_have_the_losses_of_one_group() -> None:
    """Sums are divided by K. The class loss is a mean already and is not divided again."""
    predicted = outputs(groups=1)
    layers = []
    for layer in predicted.layers:
        logits = layer.logits.expand(-1, 4, -1, -1)
        layers.append(layer.with_values(logits, layer.location.expand(-1, 4, -1, -1)))
    queries = Queries(
        predicted.queries.content.expand(-1, 4, -1, -1),
        predicted.queries.reference.expand(-1, 4, -1, -1),
    )
    targets = make_targets((3, 2))
    one = criterion()(predicted, targets)
    four = criterion()(Outputs(layers, queries), targets)
    assert four.keys() == one.keys()
    for name, loss in one.items():
        assert four[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_whole_masks_are_never_made() -> None:
    """No tensor of the criterion is as large as the masks of all queries at the full size."""
    largest = 0

    class LargestTensor(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    num_points = 16
    torch.manual_seed(0)
    pixels = torch.randn(1, CHANNELS, 48, 48).requires_grad_()
    predicted = outputs(images=1, groups=16)
    features = MaskFeatures(pixels, torch.tensor([[192, 192]]))
    features = features.with_points(PointSampledMasks(num_points).num_sampled)
    layers = [Predictions(layer.logits, layer.location, features) for layer in predicted.layers]
    with LargestTensor():
        losses = criterion(num_points)(Outputs(layers, predicted.queries), make_targets((4,)))
        torch.stack([*losses.values()]).sum().backward()
    assert 0 < largest < 16 * QUERIES * 48 * 48 / 4


def test_targets_without_masks_are_refused() -> None:
    targets = [Target(target.labels, target.boxes) for target in make_targets((2, 1))]
    with pytest.raises(ValueError, match="have no masks"):
        criterion()(outputs(), targets)
