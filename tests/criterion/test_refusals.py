"""Targets that do not fit the outputs, and terms that do not fit each other, are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.boxes3d import EncodedBoxL1
from groupdetr.criterion.classification import Focal, Softmax
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import Dice, PointSampledMasks
from groupdetr.errors import DivergedError
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.step_objects import StepObjects
from groupdetr.structures.targets import Target
from tests.criterion.samples import outputs as outputs_with_denoising
from tests.criterion.samples import targets as random_targets

IMAGES, GROUPS, QUERIES, CLASSES = 2, 3, 5, 4
LABELS, BOXES = torch.tensor([0, 3]), torch.tensor([[0.5, 0.5, 0.2, 0.3]] * 2)
TARGET = Target(LABELS, BOXES)
CRITERION = SetCriterion([Focal(2, 2), L1(5, 5), GIoU(2, 2)])


def outputs() -> Outputs:
    torch.manual_seed(0)
    flat = (2, IMAGES, GROUPS * QUERIES)
    return Outputs.from_flat(torch.randn(*flat, CLASSES), torch.rand(*flat, 4), GROUPS)


def created_on_a_gpu(labels: torch.Tensor, boxes: torch.Tensor) -> Target:
    """Return a target whose values were not checked, as those from a GPU are not."""
    target = Target(torch.zeros(len(labels)).long(), torch.full(boxes.shape, 0.5))
    target.labels, target.boxes, target.max_label = labels, boxes, None
    return target


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([TARGET], r"Target\(labels \[T\], boxes \[T,4\]\) .* there are 1 targets for 2 images"),
        ([TARGET] * 3, "there are 3 targets for 2 images"),
        ([], "there are 0 targets for 2 images"),
        (TARGET, "for each of 2 images, not Target"),
        (torch.rand(2, 1, 4), "for each of 2 images, not Tensor"),
        ([BOXES, BOXES], "for each of 2 images, not a list of Tensor"),
        ([{"labels": LABELS, "boxes": BOXES}] * 2, "for each of 2 images, not a list of dict"),
        (
            [Target(LABELS + 1, BOXES), TARGET],
            "a target has the label 4, but there are 4 classes: labels must be 0 to 3",
        ),
        ([Target(LABELS, torch.ones(2, 9))] * 2, r"must be \[T,4\] for this criterion"),
        ([TARGET.to("meta"), TARGET], r"a target is on meta and the outputs are on cpu"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CRITERION(outputs(), targets)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (created_on_a_gpu(LABELS + 1, BOXES), "a target has the label 4, but there are 4 classes"),
        (created_on_a_gpu(LABELS - 1, BOXES), "must be the indices of the classes from 0, not -1"),
        (created_on_a_gpu(LABELS, 640 * BOXES), r"must be cx, cy, w, h in \[0,1\]"),
        (created_on_a_gpu(LABELS, BOXES * float("nan")), "must be finite"),
    ],
)
def test_targets_that_were_created_on_a_gpu_are_refused_when_they_are_matched(
    target: Target, message: str
) -> None:
    """Their values come to the host with the matching costs, and need no copy of their own."""
    with pytest.raises(ValueError, match=message):
        CRITERION(outputs(), [TARGET, target])


def test_possible_targets_that_were_created_on_a_gpu_have_the_same_losses() -> None:
    expected = CRITERION(outputs(), [TARGET, TARGET])
    assert CRITERION(outputs(), [created_on_a_gpu(LABELS, BOXES), TARGET]) == expected


def test_outputs_that_are_not_finite_have_an_error_of_their_own() -> None:
    nan = outputs()
    nan.layers[1].logits[:] = float("nan")
    with pytest.raises(DivergedError, match="predictions of layer1"):
        CRITERION(nan, [created_on_a_gpu(LABELS, BOXES), TARGET])


def test_with_a_softmax_the_last_logit_is_no_class() -> None:
    criterion = SetCriterion([Softmax(1, 1), L1(5, 5)])
    with pytest.raises(ValueError, match="label 3, but there are 3 classes"):
        criterion(outputs(), [TARGET, TARGET])


@pytest.mark.parametrize("outputs", [{"pred_logits": 1}, None, torch.rand(2, 3)])
def test_outputs_of_other_types_are_refused(outputs: Any) -> None:
    with pytest.raises(ValueError, match=r"outputs must be groupdetr\.Outputs"):
        CRITERION(outputs, [TARGET, TARGET])


def test_a_number_of_objects_is_no_step() -> None:
    step: Any = torch.tensor(2.0)
    with pytest.raises(ValueError, match=r"step must be a StepObjects .* not Tensor"):
        CRITERION(outputs(), [TARGET, TARGET], step)
    CRITERION(outputs(), [TARGET, TARGET], StepObjects([2, 2]))


def test_denoising_queries_are_not_trained_with_a_softmax() -> None:
    """Those without an object have no logits, so the softmax would be undefined."""
    criterion = SetCriterion([Softmax(1, 1), L1(5, 5)])
    with pytest.raises(ValueError, match="use Focal in its place"):
        criterion(outputs_with_denoising(2, 1, counts=(2, 1)), random_targets(2, 1))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "terms must be a list of terms, .* and it is empty"),
        (Focal(2, 2), "not Focal"),
        (["focal"], "not of str"),
        ([Focal(2, 2), Focal(1, 1)], "two terms are called 'focal'"),
        ([Focal(2, float("nan"))], "the loss_weight of 'focal' must be a finite number"),
        ([Focal(-2, 2)], "the cost_weight of 'focal' must be a finite number of 0 or more, not -2"),
        ([Softmax(1, 1), Dice(5, 5)], "pass pair_builder=groupdetr.PointSampledMasks"),
        ([Focal(2, 2), EncodedBoxL1(1, 1, 0.2)], "pass pair_builder=groupdetr.EncodedBoxes3D"),
    ],
)
def test_terms_that_do_not_fit_are_refused(terms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SetCriterion(terms)


@pytest.mark.parametrize("no_object", [0.0, -0.1, float("nan"), float("inf")])
def test_queries_without_an_object_have_a_weight_above_zero(no_object: float) -> None:
    """With 0, the mean loss of a batch without objects would be 0 / 0."""
    with pytest.raises(ValueError, match="no_object must be a finite number above 0"):
        Softmax(1, 1, no_object=no_object)


def test_a_mask_is_measured_at_one_point_or_more() -> None:
    with pytest.raises(ValueError, match="num_points must be a whole number of 1 or more, not 0"):
        PointSampledMasks(0)
