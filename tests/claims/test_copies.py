"""A whole detector can be copied, saved and sent to another process, not only its weights."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch

from groupdetr.modeling.detr import DetectionTransformer

from .detectors import detector_input, random_images

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


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded, pickled])
@torch.no_grad()
def test_a_copy_detects_the_same_and_has_weights_of_its_own(
    model: DetectionTransformer, copied: Callable[[DetectionTransformer], DetectionTransformer]
) -> None:
    images = detector_input(model.recipe, IMAGES)
    expected = model.eval()(images).final
    other = copied(model)
    for weight in model.parameters():
        weight.zero_()
    for x, y in zip(other(images).final.query_tensors(), expected.query_tensors(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
