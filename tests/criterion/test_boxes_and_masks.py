"""Boxes and masks are matched and supervised together, as in RF-DETR-Seg (rfdetr 1.11.2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.boxes_and_masks import BoxesAndPointSampledMasks
from groupdetr.criterion.classification import Focal, IoUAwareBCE
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import Dice, PointCrossEntropy
from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target, TargetBatch
from tests.claims.detectors import ellipse_masks

CLASSES, CHANNELS = 5, 8
GROUPS, QUERIES, LAYERS = 3, 6, 2
SIDE = 64  # of the images; their mask features have 16 x 16 pixels
POINTS = 16  # one for 16 pixels, and as many as rows
TERMS = [
    IoUAwareBCE(2.0, 1.0),
    L1(5.0, 5.0),
    GIoU(2.0, 2.0),
    PointCrossEntropy(5.0, 5.0),
    Dice(5.0, 5.0),
]
BUILDER = BoxesAndPointSampledMasks()
CRITERION = SetCriterion(TERMS, pair_builder=BUILDER)


def layers_with_own_features(side: int = SIDE, groups: int = GROUPS) -> list[Predictions]:
    """Return predictions of proposals and layers for two images."""
    torch.manual_seed(0)
    sizes = torch.tensor([[side, side]] * 2)
    features = []
    for _ in range(1 + LAYERS):
        pixels = torch.randn(2, CHANNELS, side // 4, side // 4).requires_grad_()
        features.append(MaskFeatures(pixels, sizes))
    axes = (2, groups, QUERIES)
    predictions = []
    for layer_features in BUILDER.with_points(features):
        logits = torch.randn(*axes, CLASSES).requires_grad_()
        boxes = torch.cat([torch.rand(*axes, 2), 0.1 + 0.4 * torch.rand(*axes, 2)], dim=-1)
        embedding = (0.5 * torch.randn(*axes, CHANNELS + 1)).requires_grad_()
        predictions.append(Predictions(logits, boxes, layer_features, embedding))
    return predictions


def outputs_of(predictions: list[Predictions]) -> Outputs:
    proposals, *layers = predictions
    content = torch.zeros(*proposals.logits.shape[:3], CHANNELS)
    return Outputs(layers, Queries(content, proposals.boxes, proposals=proposals))


def make_targets(*counts: int) -> list[Target]:
    generator = torch.Generator().manual_seed(1)
    targets = []
    for count in counts:
        centre, size = torch.rand(2, count, 2, generator=generator)
        boxes = torch.cat([0.3 + 0.4 * centre, 0.1 + 0.4 * size], dim=1)
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append(Target(labels, boxes, ellipse_masks(boxes, SIDE)))
    return targets


# Independent code: the whole masks of one image and group, sampled by torch.


def sampled_masks(predictions: Predictions, image: int, group: int, points: Tensor) -> Tensor:
    """Return the logits of all queries at points [P,2], [N,P]."""
    masks = predictions.masks.full()[image, group]
    grid = (2 * points - 1).expand(len(masks), 1, -1, -1)
    return F.grid_sample(masks[:, None], grid, padding_mode="border", align_corners=False)[:, 0, 0]


def sampled_targets(target: Target, points: Tensor) -> Tensor:
    """Return the nearest pixels of the masks at points [P,2], [T,P]."""
    masks = ellipse_masks(target.boxes, SIDE).float()
    grid = (2 * points - 1).expand(len(masks), 1, -1, -1)
    sampled = F.grid_sample(
        masks[:, None], grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return sampled[:, 0, 0]


def dice(pred: Tensor, target: Tensor) -> Tensor:
    return 1 - (2 * (pred * target).sum(-1) + 1) / (pred.sum(-1) + target.sum(-1) + 1)


def mask_costs(predictions: Predictions, target: Target, image: int, group: int) -> Tensor:
    """Return the costs of masks, [T,N]."""
    features = predictions.masks.mask_features
    assert features.points is not None
    points = features.points[image, :POINTS]
    logits = sampled_masks(predictions, image, group, points)[None]
    labels = sampled_targets(target, points)[:, None].expand(-1, QUERIES, -1)
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits.expand_as(labels), labels, reduction="none"
    ).mean(-1)
    return 5 * cross_entropy + 5 * dice(logits.sigmoid(), labels)


def costs(terms: list, predictions: Predictions, targets: list[Target]) -> Tensor:
    """Return the matching costs of the library, [L,B,K,T,N]."""
    supervised = outputs_of([predictions, predictions]).supervised()[0]
    criterion = SetCriterion(terms, pair_builder=BUILDER)
    return torch.from_numpy(criterion.matcher.costs(supervised, TargetBatch.from_targets(targets)))


# Claims


def test_costs_are_those_of_boxes_plus_those_of_whole_masks_of_the_same_image() -> None:
    targets = make_targets(4, 2)
    box_terms = [term for term in TERMS if term.location != "mask"]
    for predictions in layers_with_own_features():
        ours = costs(TERMS, predictions, targets)[0]
        of_boxes = costs(box_terms, predictions, targets)[0]
        for image, target in enumerate(targets):
            for group in range(GROUPS):
                expected = mask_costs(predictions, target, image, group).detach()
                difference = (ours - of_boxes)[image, group, : len(target)] - expected
                assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (QUERIES, 1)])
def test_losses_and_gradients_are_those_of_whole_masks(counts: tuple[int, int]) -> None:
    predictions, targets = layers_with_own_features(), make_targets(*counts)
    losses = CRITERION(outputs_of(predictions), targets)
    expected = {}
    for name, layer in zip(("proposals", "layer0", "layer1"), predictions):
        for term, value in zip(("mask", "dice"), expected_mask_losses(layer, targets)):
            expected[f"{name}/{term}"] = value / (GROUPS * sum(counts))
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name

    leaves = [layer.embeddings_of_masks for layer in predictions]
    leaves += [layer.masks.mask_features.pixels for layer in predictions]
    of_masks = sum(losses[name] for name in expected)
    ours = torch.autograd.grad(of_masks, leaves, retain_graph=True)
    theirs = torch.autograd.grad(sum(expected.values()), leaves)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max().item())


def expected_mask_losses(predictions: Predictions, targets: list[Target]) -> tuple[Tensor, Tensor]:
    """Return the weighted cross-entropy and dice of one layer, summed over all groups."""
    ours = costs(TERMS, predictions, targets)[0]
    cross_entropy = dice_loss = torch.zeros(())
    features = predictions.masks.mask_features
    assert features.points is not None
    for image, target in enumerate(targets):
        points = features.points[image]
        labels = sampled_targets(target, points) if len(target) else torch.zeros(0, len(points))
        for group in range(GROUPS):
            logits = sampled_masks(predictions, image, group, points)
            objects, queries = linear_sum_assignment(ours[image, group, : len(target)])
            for matched, query in zip(objects, queries):
                certainty = logits[query, : 3 * POINTS].detach().abs()
                uncertain = certainty.argsort()[: 3 * POINTS // 4]
                index = torch.cat([uncertain, torch.arange(3 * POINTS, len(points))])
                x, y = logits[query, index], labels[matched, index]
                cross_entropy = cross_entropy + F.binary_cross_entropy_with_logits(x, y)
                dice_loss = dice_loss + dice(x.sigmoid(), y)
    return 5 * cross_entropy, 5 * dice_loss


def test_the_number_of_points_follows_the_size_of_the_mask_features() -> None:
    """Those of nano at 312 pixels, and of images that are so small that rows decide."""
    nano, small = BUILDER.point_counts(78, 78), BUILDER.point_counts(8, 12)
    assert (nano.cost, nano.loss) == (380, 380)
    assert (small.cost, small.loss) == (6, 8)
    assert (nano.candidates, nano.uncertain, nano.sampled) == (1140, 285, 1235)


def test_only_masks_of_matched_queries_are_multiplied_out() -> None:
    """With gradients, no tensor has as many numbers as the masks of all queries at the points."""
    largest = 0

    class LargestTensorWithGradient(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and torch.is_grad_enabled():
                largest = max(largest, result.numel())
            return result

    groups, side = 64, 128
    predictions, targets = layers_with_own_features(side, groups), make_targets(1, 1)
    with LargestTensorWithGradient():
        losses = CRITERION(outputs_of(predictions), targets)
    assert sum(losses.values()).isfinite()
    sampled = BUILDER.point_counts(side // 4, side // 4).sampled
    assert 0 < largest < groups * QUERIES * sampled / 2


def test_terms_of_boxes_and_masks_need_the_pairs_of_both() -> None:
    with pytest.raises(ValueError, match=r"pass pair_builder=groupdetr.BoxesAndPointSampledMasks"):
        SetCriterion([Focal(2, 2), GIoU(2, 2), Dice(5, 5)])
