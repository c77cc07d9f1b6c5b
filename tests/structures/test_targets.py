"""Targets are checked when they are created, and those from a GPU by the criterion."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.targets import Target, TargetBatch

LABELS = torch.tensor([1, 0])
BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.4, 0.6, 0.1, 0.1]])
BOXES_3D = torch.tensor([[1.0, 2.0, 0.0, 2.0, 4.0, 1.5, 0.3, 0.0, 0.0]] * 2)
NAN = float("nan")


def changed(boxes: Tensor, column: int, value: float) -> Tensor:
    """Return boxes with another value in one column of the second box."""
    boxes = boxes.clone()
    boxes[1, column] = value
    return boxes


@pytest.mark.parametrize(
    ("labels", "boxes", "message"),
    [
        (LABELS.float(), BOXES, r"labels \[2\] must be integers \(int64\).* not torch.float32"),
        (LABELS.bool(), BOXES, "not torch.bool"),
        (LABELS - 1, BOXES, r"labels \[2\] must be the indices of the classes from 0, not -1"),
        (LABELS[None], BOXES, r"labels must be \[T\], not \(1, 2\)"),
        ([1, 0], BOXES, r"labels must be a tensor \[T\] of integers, not list"),
        (LABELS, BOXES.tolist(), r"boxes must be a tensor \[2,4\] or \[2,9\], not list"),
        (LABELS, BOXES[:1], r"boxes of 2 labels must be \[2,4\] or \[2,9\], not \(1, 4\)"),
        (LABELS, BOXES[0], r"must be \[2,4\] or \[2,9\], not \(4,\)"),
        (LABELS, torch.rand(2, 5), r"must be \[2,4\] or \[2,9\], not \(2, 5\)"),
        (LABELS, BOXES.long(), "floating-point numbers, not torch.int64"),
        (LABELS, 640 * BOXES, r"boxes \[2, 4\] must be cx, cy, w, h in \[0,1\].* to 384: divide"),
        (LABELS, changed(BOXES, 0, -0.1), r"values from -0.1 to 0.6"),
        (LABELS, changed(BOXES, 2, -0.1), "one of them has the width or height -0.1"),
        (LABELS, changed(BOXES, 3, NAN), "must be finite"),
        (LABELS, changed(BOXES, 1, float("inf")), "must be finite"),
        (LABELS, changed(BOXES_3D, 8, NAN), "must be finite"),
        (LABELS, changed(BOXES_3D, 5, 0.0), "one of them has the width, length or height 0"),
    ],
)
def test_impossible_targets_are_refused_in_one_sentence(
    labels: Any, boxes: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Target(labels, boxes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(1, 8, 8), "1 masks for 2 labels"),
        (torch.zeros(8, 8), r"masks must be \[T,H,W\], not \(8, 8\)"),
        (torch.full((2, 8, 8), 0.3), r"must be 0 or 1; compare .* masks > 0.5"),
        (torch.full((2, 8, 8), float("nan")), "must be 0 or 1"),
        (torch.zeros(2, 8, 8).numpy(), r"masks must be a tensor \[T,H,W\] or CroppedMasks"),
    ],
)
def test_impossible_masks_are_refused(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(LABELS, BOXES, masks)


def test_labels_of_any_integer_type_become_int64() -> None:
    for dtype in (torch.uint8, torch.int32, torch.int64):
        assert torch.equal(Target(LABELS.to(dtype), BOXES).labels, LABELS)
    # Torch makes floats of an empty list.
    target = Target(torch.tensor([]), torch.zeros(0, 4))
    assert (len(target), target.labels.dtype) == (0, torch.int64)


def test_boxes_at_the_edges_and_rounding_are_no_errors() -> None:
    Target(LABELS, torch.tensor([[0.5, 0.5, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0 + 1e-6]]))


def test_copies_keep_the_result_of_the_check() -> None:
    """So the values are read once, where they are on the CPU."""
    target = Target(LABELS, BOXES, torch.ones(2, 8, 8))
    assert target.max_label == 1
    moved = target.to("meta")  # a device whose values cannot be read
    assert (moved.max_label, moved.boxes.device.type) == (1, "meta")
    assert isinstance(moved.masks, CroppedMasks)
    assert moved.masks.pixels.device.type == "meta"
    assert target.boxes.device.type == "cpu"
    assert pickle.loads(pickle.dumps(target)).max_label == 1


def test_values_on_another_device_are_not_read() -> None:
    """On the device "meta", reading would fail. On a GPU, it would wait for the GPU."""
    target = Target(LABELS.to("meta"), BOXES.to("meta"))
    assert target.max_label is None


@pytest.mark.parametrize(
    ("labels", "boxes"),
    [
        (LABELS + 2, BOXES),
        (LABELS - 1, BOXES),
        (LABELS, 640 * BOXES),
        (LABELS, changed(BOXES, 2, -0.1)),
        (LABELS, changed(BOXES, 3, NAN)),
        (LABELS, changed(BOXES_3D, 5, 0.0)),
    ],
)
def test_impossible_objects_of_a_batch_are_marked_and_their_labels_replaced(
    labels: Tensor, boxes: Tensor
) -> None:
    target = Target(LABELS, BOXES if boxes.shape[1] == 4 else BOXES_3D)
    target.labels, target.boxes = labels, boxes
    batch = TargetBatch.from_targets([target, target], min_objects=3).mark_invalid(num_classes=3)
    assert batch.invalid is not None
    assert batch.invalid.any(1).tolist() == [True, True]
    assert not batch.invalid[:, 2].any(), "the padding is no object"
    assert batch.labels.min() >= 0
    assert batch.labels.max() < 3
