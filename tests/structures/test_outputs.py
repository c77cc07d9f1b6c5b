"""Outputs of a detector that is not of this library: flat predictions become groups."""

from __future__ import annotations

import pytest
import torch

from groupdetr.structures.outputs import Outputs

L, B, K, N, CLASSES = 3, 2, 4, 5, 7


def test_flat_predictions_are_split_into_groups_in_order() -> None:
    logits, boxes = torch.randn(L, B, K * N, CLASSES), torch.rand(L, B, K * N, 4)
    outputs = Outputs.from_flat(logits, boxes, num_groups=K)
    assert len(outputs.layers) == L
    for layer, predictions in enumerate(outputs.layers):
        for group in range(K):
            queries = slice(group * N, (group + 1) * N)
            assert torch.equal(predictions.logits[:, group], logits[layer, :, queries])
            assert torch.equal(predictions.boxes[:, group], boxes[layer, :, queries])
    (supervised,) = outputs.supervised()
    assert supervised.names == ("layer0", "layer1", "layer2")
    assert supervised.predictions.logits.shape == (L, B, K, N, CLASSES)
    assert supervised.assignment is None
    assert torch.equal(outputs.final.logits, logits[-1])
    inference = Outputs.from_flat(logits[:, :, :N], boxes[:, :, :N], num_groups=1).final
    assert torch.equal(inference.boxes, boxes[-1, :, :N])


def test_predictions_without_an_axis_of_layers_are_one_layer() -> None:
    logits, boxes = torch.randn(B, K * N, CLASSES), torch.rand(B, K * N, 4)
    (layer,) = Outputs.from_flat(logits, boxes, num_groups=K).layers
    assert torch.equal(layer.logits, logits.view(B, K, N, CLASSES))
    assert torch.equal(layer.boxes, boxes.view(B, K, N, 4))


@pytest.mark.parametrize(
    ("logits", "boxes", "num_groups", "message"),
    [
        ((L, B, 20, 7), (L, B, 20, 4), 3, "20 queries cannot be split into 3 groups of equal size"),
        ((L, B, 20, 7), (L, B, 20, 4), 0, "num_groups must be a whole number of 1 or more, not 0"),
        ((L, B, 20, 7), (B, 20, 4), 4, "both with or both without L"),
        ((L, B, 20, 7), (L, B, 10, 4), 2, r"not logits \[3, 2, 20, 7\] and boxes \[3, 2, 10, 4\]"),
        ((L, B, 4, 5, 7), (L, B, 4, 5, 4), 4, r"logits must be \[L,B,K\*N,classes\]"),
        ((20, 7), (20, 4), 4, r"logits must be \[L,B,K\*N,classes\]"),
        ((L, B, 20, 7), (L, B, 20, 5), 4, "boxes must have 4 coordinates"),
    ],
)
def test_other_shapes_are_refused(
    logits: tuple[int, ...], boxes: tuple[int, ...], num_groups: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Outputs.from_flat(torch.zeros(logits), torch.zeros(boxes), num_groups)
