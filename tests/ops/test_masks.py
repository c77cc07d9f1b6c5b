"""Masks that are computed from mask features equal masks at full size, resized or sampled."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from groupdetr.ops.masks import mask_logits, point_sample
from groupdetr.structures.masks import MaskFeatures, MaskPredictions


def random_predictions() -> MaskPredictions:
    torch.manual_seed(0)
    embedding = torch.randn(2, 3, 5, 8)
    sizes = torch.tensor([[48, 64], [40, 50]])
    return MaskPredictions(embedding, MaskFeatures(torch.randn(2, 8, 12, 16), sizes))


def test_the_full_mask_is_the_dot_product_with_every_pixel() -> None:
    masks = random_predictions()
    expected = torch.einsum("bknc,bchw->bknhw", masks.embedding, masks.mask_features.pixels)
    assert torch.allclose(masks.full(), expected, atol=1e-5)


def test_resizing_the_features_equals_resizing_the_mask() -> None:
    masks = random_predictions()
    full = masks.full().flatten(1, 2)
    for shape in ((6, 8), (24, 30), (5, 7)):
        expected = F.interpolate(full, shape, mode="bilinear", align_corners=False)
        assert torch.allclose(masks.resized(shape).flatten(1, 2), expected, atol=1e-5)


def test_sampling_the_features_equals_sampling_the_mask() -> None:
    masks = random_predictions()
    points = torch.rand(2, 9, 2)
    expected = point_sample(masks.full().flatten(1, 2), points)
    assert torch.allclose(masks.at(points).flatten(1, 2), expected, atol=1e-5)


def test_one_number_more_in_an_embedding_is_the_bias_of_its_mask() -> None:
    torch.manual_seed(0)
    embedding, pixels = torch.randn(2, 5, 9), torch.randn(2, 8, 12)
    expected = torch.einsum("bqc,bcp->bqp", embedding[..., :8], pixels) + embedding[..., 8:]
    assert torch.allclose(mask_logits(embedding, pixels), expected, atol=1e-5)


def test_points_beside_the_border_have_its_value_or_zero() -> None:
    """The centre of the first of two pixels is at 0.25."""
    maps = torch.tensor([[[[2.0, 4.0], [2.0, 4.0]]]])
    points = torch.tensor([[[0.0, 0.5], [0.5, 0.5], [1.0, 0.5]]])
    assert point_sample(maps, points, "border").flatten().tolist() == [2, 3, 4]
    assert point_sample(maps, points).flatten().tolist() == [1, 3, 2]
