"""Create models and criteria by name."""

from __future__ import annotations

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.experiments import experiment
from groupdetr.modeling.detr import DetectionTransformer


def create_model(name: str, **options: object) -> DetectionTransformer:
    """Return the detector called ``name``, with random weights.

    `groupdetr presets` lists the names. ``options`` are fields of its recipe, such as
    ``num_groups=11, dropout=0.0``. `UsageError` for an unknown name, `TypeError` for an unknown
    option.
    """
    return experiment(name).recipe.with_options(**options).build()


def create_criterion(model: DetectionTransformer) -> SetCriterion:
    """Return the criterion with the terms and the matching of the model's recipe."""
    return model.recipe.criterion()
