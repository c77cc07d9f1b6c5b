"""A whole detector can be copied, saved and sent to another process, not only its weights."""

from __future__ import annotations

import copy
import io
import pickle

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


@torch.no_grad()
def assert_copies_detect_the_same(model: DetectionTransformer) -> None:
    """Copies have weights of their own, so those of the original may change.

    Another process that is started by spawn gets a pickled model.
    """
    images = detector_input(model.recipe, IMAGES)
    expected = model.eval()(images).final
    pickled = pickle.loads(pickle.dumps(model))
    copies = [copy.deepcopy(model), saved_and_loaded(model), pickled]
    for weight in model.parameters():
        weight.zero_()
    for other in copies:
        final = other(images).final
        for x, y in zip(final.query_tensors(), expected.query_tensors(), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_copies_detect_the_same(model: DetectionTransformer) -> None:
    assert_copies_detect_the_same(model)


def test_copies_of_a_detector_with_frozen_norms_detect_the_same() -> None:
    """The detectors of the other test that have such norms are large, so it is slow for them."""
    model = build(LiteConditionalDETR(**SMALL))
    assert any(isinstance(module, FrozenBatchNorm) for module in model.modules())
    assert_copies_detect_the_same(model)
