"""The comparison of an exported detector with PyTorch."""

from __future__ import annotations

import torch

from groupdetr.deployment.verification import TOLERANCE, _difference
from groupdetr.structures.detections import Detections


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
