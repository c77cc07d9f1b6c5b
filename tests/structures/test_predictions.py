"""Predictions with boxes, masks or both: what can be read, and what indexing and stacking keep."""

from __future__ import annotations

import pytest
import torch

from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.predictions import Predictions

B, K, N, CLASSES, C = 2, 3, 4, 5, 6
SIZES = torch.tensor([[32, 32]] * B)


def features() -> MaskFeatures:
    return MaskFeatures(torch.randn(B, C, 8, 8), SIZES)


def both(mask_features: MaskFeatures | None = None) -> Predictions:
    """Return predictions of boxes and masks."""
    axes = (B, K, N)
    return Predictions(
        torch.randn(*axes, CLASSES),
        torch.rand(*axes, 4),
        mask_features or features(),
        torch.randn(*axes, C + 1),
    )


def test_boxes_and_masks_can_be_read_together() -> None:
    predictions = both()
    assert predictions.has_boxes
    assert predictions.has_masks
    assert torch.equal(predictions.to_boxes(), predictions.location)
    assert predictions.masks.full().shape == (B, K, N, 8, 8)


def test_only_what_is_predicted_can_be_read() -> None:
    logits, location = torch.randn(B, K, N, CLASSES), torch.rand(B, K, N, C)
    with pytest.raises(ValueError, match="have boxes and no masks"):
        _ = Predictions(logits, location).masks
    with pytest.raises(ValueError, match="have masks and no boxes"):
        _ = Predictions(logits, location, features()).boxes
    with pytest.raises(ValueError, match="needs mask_features"):
        Predictions(logits, torch.rand(B, K, N, 4), None, torch.randn(B, K, N, C))


def test_the_masks_of_selected_queries_are_the_selected_masks() -> None:
    predictions = both()
    masks = predictions.masks.full()
    assert torch.equal(predictions[:, 1].masks.full(), masks[:, 1])
    flat = predictions.flatten_groups().masks.full()
    assert torch.allclose(flat, masks.flatten(1, 2), atol=1e-6)
    first, second = predictions.split(1)
    assert torch.equal(first.boxes, predictions.boxes[:, :, :1])
    assert torch.equal(second.embeddings_of_masks, predictions.embeddings_of_masks[:, :, 1:])


def test_every_stacked_layer_keeps_its_own_mask_features() -> None:
    layers = [both() for _ in range(3)]
    proposals = both()
    stacked = proposals[None].cat(Predictions.stack(layers))
    assert stacked.logits.shape == (4, B, K, N, CLASSES)
    expected = [layer.mask_features for layer in (proposals, *layers)]
    assert all(a is b for a, b in zip(stacked.mask_features_by_layer(), expected, strict=True))
    # Groups may be selected, and layers may not.
    assert len(stacked[:, :, :1].mask_features_by_layer()) == 4
    with pytest.raises(ValueError, match="cannot be selected"):
        _ = stacked[1:]
