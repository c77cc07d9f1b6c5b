"""A whole detector can be copied, saved and sent to another process, not only its weights."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch

from groupdetr.detectors.lite import LiteConditionalDETR
from groupdetr.modeling.backbones.frozen_batch_norm import FrozenBatchNorm
from groupdetr.modeling.detr import DetectionTransformer

from .detectors import SMALL, build, detector_input, random_images

IMAGES = random_images((2, 3), (3, 1))


def saved_and_loaded(model: DetectionTransformer) -> DetectionTransformer:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: DetectionTransformer = torch.load(file, weights_only=False)
    return loaded


def pickled(model: DetectionTransformer) -> DetectionTransformer:
    """Return the model as another process gets it that is started by spawn."""
    received: DetectionTransformer = pickle.loads(pickle.dumps(model))
    return received


COPIES = [copy.deepcopy, saved_and_loaded, pickled]
Copy = Callable[[DetectionTransformer], DetectionTransformer]


@torch.no_grad()
def assert_copy_detects_the_same(model: DetectionTransformer, copied: Copy) -> None:
    """The copy has weights of its own, so those of the original may change."""
    images = detector_input(model.recipe, IMAGES)
    expected = model.eval()(images).final
    other = copied(model)
    for weight in model.parameters():
        weight.zero_()
    for x, y in zip(other(images).final.query_tensors(), expected.query_tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_detects_the_same(model: DetectionTransformer, copied: Copy) -> None:
    assert_copy_detects_the_same(model, copied)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_a_detector_with_frozen_norms_detects_the_same(copied: Copy) -> None:
    """The detectors of the other test that have such norms are large, so it is slow for them."""
    model = build(LiteConditionalDETR(**SMALL))
    assert any(isinstance(module, FrozenBatchNorm) for module in model.modules())
    assert_copy_detects_the_same(model, copied)
