from __future__ import annotations

import pytest

from groupdetr.detectors.recipe import Recipe
from groupdetr.modeling.detr import DetectionTransformer

from .detectors import FAST, SLOW, build

CASES = [pytest.param(recipe, id=name) for name, recipe in FAST.items()]
CASES += [pytest.param(recipe, id=name, marks=pytest.mark.slow) for name, recipe in SLOW.items()]


@pytest.fixture(params=CASES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Every detector in turn."""
    return request.param


@pytest.fixture
def model(recipe: Recipe) -> DetectionTransformer:
    return build(recipe).train()
