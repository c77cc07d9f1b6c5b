"""The comparison of an exported detector with PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from groupdetr.deployment.verification import (
    TOLERANCE,
    YAW,
    _difference,
    _difference_of_scenes,
)
from groupdetr.structures.detections import Detections
from groupdetr.structures.detections3d import Detections3D


def detections(boxes: torch.Tensor, scores: torch.Tensor) -> Detections:
    return Detections(scores, torch.zeros(len(boxes), dtype=torch.int64), boxes)


def test_boxes_of_an_untrained_detector_are_compared_although_their_scores_are_equal() -> None:
    """Which of the equal ones are among the best is random, so one of them may be another box."""
    generator = torch.Generator().manual_seed(0)
    boxes = 100 * torch.rand(20, 4, generator=generator)
    scores = torch.full((20,), 0.01)
    theirs = detections(boxes, scores)
    one_other = boxes.clone()
    one_other[3] += 500
    assert _difference(detections(one_other, scores), theirs).is_within(TOLERANCE)
    assert _difference(detections(one_other, scores), theirs).detections == 20
    all_moved = detections(boxes + torch.tensor([500.0, 0, 500, 0]), scores)
    assert not _difference(all_moved, theirs).is_within(TOLERANCE)


def test_every_box_is_compared_if_scores_differ() -> None:
    boxes = torch.arange(80.0).view(20, 4)
    scores = torch.linspace(0.9, 0.1, 20)
    moved = boxes.clone()
    moved[3] += 500
    difference = _difference(detections(moved, scores), detections(boxes, scores))
    assert not difference.is_within(TOLERANCE)


@pytest.mark.parametrize("row", [0, 19])
def test_a_number_of_a_box_that_is_nan_is_no_agreement(row: int) -> None:
    """The scores are those of the reference. A comparison with NaN is false, whatever it is."""
    scores = torch.linspace(0.9, 0.1, 20)
    boxes = torch.arange(80.0).view(20, 4)
    broken = boxes.clone()
    broken[row, 2] = torch.nan
    # The detection of the lowest score is not compared, so there is one more.
    lowest = torch.full((1, 4), 500.0)
    theirs = detections(torch.cat([boxes, lowest]), torch.cat([scores, scores[-1:] - 0.1]))
    ours = replace(theirs, boxes=torch.cat([broken, lowest]))
    assert _difference(theirs, theirs).is_within(TOLERANCE)
    assert not _difference(ours, theirs).is_within(TOLERANCE)

    boxes3d = torch.arange(180.0).view(20, 9)
    scene = Detections3D(scores, theirs.labels[:20], boxes3d)
    with_nan = replace(scene, boxes=boxes3d.clone())
    with_nan.boxes[min(row, 18), 8] = torch.nan  # a velocity
    assert _difference_of_scenes(scene, scene).box3d == 0
    assert _difference_of_scenes(with_nan, scene).box3d > TOLERANCE.box3d


def test_boxes_of_an_untrained_detector_of_scenes_are_compared() -> None:
    boxes = torch.arange(180.0).view(20, 9)
    labels = torch.zeros(20, dtype=torch.int64)
    theirs = Detections3D(torch.full((20,), 0.005), labels, boxes)
    turned = replace(theirs, boxes=boxes + torch.eye(9)[YAW])
    difference = _difference_of_scenes(turned, theirs)
    assert difference.detections == 20
    assert difference.box3d == pytest.approx(1)
