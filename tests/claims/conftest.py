from __future__ import annotations

import pytest

from groupdetr.detectors.recipe import Recipe
from groupdetr.modeling.detr import DetectionTransformer

from .detectors import FAST, SLOW, build

CASES = [pytest.param(recipe, id=name) for name, recipe in FAST.items()]
CASES += [pytest.param(recipe, id=name, marks=pytest.mark.slow) for name, recipe in SLOW.items()]
# Learned queries; proposals and denoising, which are computed with their chunk; masks; cameras.
KINDS = ("conditional-detr", "dino", "mask2former", "petrv2")
every_kind = pytest.mark.parametrize("recipe", [FAST[name] for name in KINDS], ids=KINDS)
# All other detectors are for `-m slow`.
every_kind_in_ci = pytest.mark.parametrize(
    "recipe",
    [
        case if case.id in KINDS else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
        for case in CASES
    ],
)


@pytest.fixture(params=CASES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Every detector in turn."""
    return request.param


@pytest.fixture
def model(recipe: Recipe) -> DetectionTransformer:
    return build(recipe).train()
