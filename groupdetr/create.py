"""Models and criteria by name: the researcher's way in."""

from __future__ import annotations

from typing import Any

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.experiments import experiment
from groupdetr.modeling.detr import DetectionTransformer


def create_model(name: str, **options: Any) -> DetectionTransformer:
    """The detector called ``name`` (see `groupdetr presets`), with random weights.

    ``options``: any field of its recipe (``num_groups=11, dropout=0.0``); an unknown one is a TypeError.
    """
    return experiment(name).recipe.with_options(**options).build()


def create_criterion(model: DetectionTransformer) -> SetCriterion:
    """The criterion with the terms and the matching of the model's recipe."""
    return model.recipe.criterion()
