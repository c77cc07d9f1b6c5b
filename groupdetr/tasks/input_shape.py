"""The shape of the images that a detector takes, which its recipe decides."""

from __future__ import annotations

from groupdetr.data.transforms import InputShape
from groupdetr.detectors.recipe import Recipe


def input_shape(recipe: Recipe) -> InputShape:
    """Return what the network of a recipe needs of the shape of its images."""
    return InputShape(square=recipe.square_images, divisor=recipe.size_divisor)
