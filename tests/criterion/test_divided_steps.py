"""The loss of an optimizer step does not depend on how its batch is divided.

A batch is divided into micro-batches (``--accumulate``), over processes, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from groupdetr.criterion import criterion as criterion_module
from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.boxes3d import EncodedBoxes3D, EncodedBoxL1
from groupdetr.criterion.classification import Focal, Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import Dice, PointCrossEntropy, PointSampledMasks
from groupdetr.criterion.matcher import HungarianMatcher
from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.step_objects import StepObjects
from groupdetr.structures.targets import Target, TargetBatch

CLASSES, GROUPS, QUERIES, CHANNELS, SIDE = 3, 2, 20, 4, 16
BOX_TERMS = [L1(5.0, 5.0), GIoU(2.0, 2.0)]
MASK_TERMS = [PointCrossEntropy(5.0, 5.0), Dice(5.0, 5.0)]
CRITERIA = {
    "focal": SetCriterion([Focal(2.0, 2.0), *BOX_TERMS]),
    "softmax": SetCriterion([Softmax(1.0, 1.0), *BOX_TERMS]),
    "masks": SetCriterion([Softmax(2.0, 2.0), *MASK_TERMS], pair_builder=PointSampledMasks(8)),
    "3D": SetCriterion(
        [Focal(2.0, 2.0), EncodedBoxL1(0.25, 0.25, velocity=0.2)], pair_builder=EncodedBoxes3D()
    ),
}


def make_targets(kind: str, counts: Sequence[int]) -> list[Target]:
    targets = []
    for count in counts:
        labels = torch.randint(CLASSES, (count,))
        if kind == "3D":
            targets.append(Target(labels, 0.5 + torch.rand(count, 9)))
            continue
        boxes = 0.2 + 0.4 * torch.rand(count, 4)
        masks = torch.rand(count, SIDE, SIDE) < 0.5 if kind == "masks" else None
        targets.append(Target(labels, boxes, masks))
    return targets


def make_predictions(kind: str, images: int) -> Predictions:
    axes = (images, GROUPS, QUERIES)
    logits = torch.randn(*axes, CLASSES + (kind in ("softmax", "masks")))
    if kind == "masks":
        pixels = torch.randn(images, CHANNELS, SIDE // 4, SIDE // 4)
        features = MaskFeatures(pixels, torch.tensor([[SIDE, SIDE]] * images))
        features = features.with_points(PointSampledMasks(8).num_sampled)
        return Predictions(logits, torch.randn(*axes, CHANNELS), features)
    if kind == "3D":
        return Predictions(logits, torch.rand(*axes, 10))
    return Predictions(logits, 0.2 + 0.4 * torch.rand(*axes, 4))


def part_of(predictions: Predictions, images: slice) -> Predictions:
    features = predictions.mask_features
    if features is not None:
        features = features.map(lambda x: x[images])
    return Predictions(predictions.logits[images], predictions.location[images], features)


def losses_in_parts(kind: str, counts: Sequence[int], parts: int) -> dict[str, float]:
    """Return the losses of a step, averaged over its parts."""
    torch.manual_seed(0)
    targets = make_targets(kind, counts)
    predictions = make_predictions(kind, len(counts))
    step = StepObjects(counts, parts)
    size = len(counts) // parts
    means: dict[str, float] = {}
    for first in range(0, len(counts), size):
        images = slice(first, first + size)
        outputs = Outputs([part_of(predictions, images)])
        for name, loss in CRITERIA[kind](outputs, targets[images], step).items():
            means[name] = means.get(name, 0.0) + loss.item() / parts
    return means


@pytest.mark.parametrize("kind", CRITERIA)
def test_the_losses_of_1_2_4_and_8_parts_are_equal(kind: str) -> None:
    for counts in (
        (0, 0, 1, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 0, 0),
        (3, 0, 1, 2, 0, 0, 5, 4),
        (60, 1, 1, 1, 0, 25, 20, 21),  # more objects than queries
    ):
        whole = losses_in_parts(kind, counts, parts=1)
        for parts in (2, 4, 8):
            assert losses_in_parts(kind, counts, parts) == pytest.approx(whole, rel=1e-5), counts


@pytest.mark.parametrize("counts", [(60, 1, 1, 1), (30, 2, 2, 2)])
@pytest.mark.parametrize("kind", ["softmax", "masks"])
def test_the_class_loss_is_the_weighted_mean_over_the_queries_of_the_step(
    kind: str, counts: tuple[int, ...]
) -> None:
    """PyTorch's cross-entropy computes this mean. With 20 queries, most objects have none."""
    torch.manual_seed(0)
    targets = make_targets(kind, counts)
    predictions = make_predictions(kind, len(counts))
    matcher: HungarianMatcher = CRITERIA[kind].matcher
    (supervised,) = Outputs([predictions]).supervised()
    assignment = matcher(supervised, TargetBatch.from_targets(targets))
    classes = torch.full((len(counts), GROUPS, QUERIES), CLASSES)
    for image, group, query, target in assignment.pairs[:, 0].T.tolist():
        classes[image, group, query] = targets[image].labels[target]
    assert (classes < CLASSES).sum() == GROUPS * (min(counts[0], QUERIES) + sum(counts[1:]))

    weights = torch.tensor([1.0] * CLASSES + [0.1])
    expected = F.cross_entropy(predictions.logits.flatten(0, 2), classes.flatten(), weights)
    weight = CRITERIA[kind].terms[0].loss_weight
    for parts in (1, 2, 4):
        losses = losses_in_parts(kind, counts, parts)
        assert losses["layer0/softmax"] == pytest.approx(weight * expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", CRITERIA)
def test_processes_have_the_loss_of_one_process_by_default(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process adds the counts of all, so the clamp at one object is that of the step.

    Published code clamps the mean of the processes. Here, a step with one object in two processes
    would then have half the loss.
    """
    counts = (0, 0, 1, 0)
    expected = losses_in_parts(kind, counts, parts=1)
    torch.manual_seed(0)
    targets = make_targets(kind, counts)
    predictions = make_predictions(kind, len(counts))
    own_totals = [(1, 1), (0, 0)]  # of the second process and of the first one

    def all_reduce(sums: torch.Tensor) -> None:
        sums += torch.tensor(own_totals.pop(0), dtype=sums.dtype)

    distributed: Any = criterion_module.torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    mean = dict.fromkeys(expected, 0.0)
    for images in (slice(0, 2), slice(2, 4)):
        outputs = Outputs([part_of(predictions, images)])
        for name, loss in CRITERIA[kind](outputs, targets[images]).items():
            mean[name] += loss.item() / 2
    assert mean == pytest.approx(expected, rel=1e-5)


def test_a_step_has_all_objects_of_its_parts() -> None:
    outputs, targets = Outputs([make_predictions("focal", 2)]), make_targets("focal", (3, 2))
    with pytest.raises(ValueError, match="step has 4 objects, but these targets alone have 5"):
        CRITERIA["focal"](outputs, targets, StepObjects([3, 1]))


def test_the_points_of_an_image_in_validation_do_not_depend_on_its_batch() -> None:
    """So the matching instability is the same for every batch size and number of processes."""
    torch.manual_seed(0)
    targets = make_targets("masks", (3, 3))
    axes = (2, GROUPS, QUERIES)
    pixels = torch.randn(2, CHANNELS, SIDE // 4, SIDE // 4)
    features = MaskFeatures(pixels, torch.tensor([[SIDE, SIDE]] * 2))  # without points
    predictions = Predictions(
        torch.randn(*axes, CLASSES + 1), torch.randn(*axes, CHANNELS), features
    )
    matcher = CRITERIA["masks"].matcher

    def costs(images: slice) -> torch.Tensor:
        part = features.map(lambda x: x[images])
        prediction = Predictions(predictions.logits[images], predictions.location[images], part)
        (supervised,) = Outputs([prediction]).supervised()
        batch = TargetBatch.from_targets(targets[images])
        return torch.from_numpy(matcher.costs(supervised, batch))[0]

    both = costs(slice(0, 2))
    torch.testing.assert_close(costs(slice(1, 2))[0], both[1])
