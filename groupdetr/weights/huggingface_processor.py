"""The size of images in preprocessor_config.json, beside the weights in a folder of transformers.

A folder of this library has the size in its config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from groupdetr.checkpoints.hub import PROCESSOR
from groupdetr.checkpoints.layout import Metadata, RecipeFields
from groupdetr.weights.huggingface_conditional_detr import OWN

# The longest side over the shortest one, of images that are resized by the shortest one. The limit
# is 1333 / 800 here and in the published models.
MIN_ASPECT = 1.6


def processor_side(metadata: Metadata) -> int | None:
    """Return the shortest side of the images in pixels, or the side of squares, None if unknown."""
    size = _size(metadata)
    side = size.get("shortest_edge", size.get("height")) if _is_known(size) else None
    return side if type(side) is int else None


def processor_fields(metadata: Metadata) -> RecipeFields:
    """Return the recipe field that says if images become squares, {} if that is unknown."""
    size = _size(metadata)
    return {"square_images": "height" in size} if _is_known(size) else {}


def processor_note(metadata: Metadata, side: int) -> list[str]:
    """Return a line about images that this library does not resize as the image processor does.

    ``side`` is the shortest side of the images here, in pixels.
    """
    size = _size(metadata)
    if not size or _is_known(size):
        return []
    text = ", ".join(f"{name} {value}" for name, value in size.items())
    return [
        f"its image processor resizes images to {text[:200]}, and groupdetr to a shortest side of "
        f"{side}; another one is chosen by groupdetr predict --imgsz"
    ]


def _size(metadata: Metadata) -> Mapping[str, Any]:
    """Return the entry ``size`` of the image processor, {} if it does not resize."""
    processor = metadata.get(PROCESSOR, {})
    if OWN in metadata or not processor.get("do_resize", True):
        return {}
    size = processor.get("size", {})
    # Older files have the shortest side alone.
    if isinstance(size, int):
        return {"shortest_edge": size}
    return size if isinstance(size, Mapping) else {}


def _is_known(size: Mapping[str, Any]) -> bool:
    """True for squares, and for a shortest side with the usual limit of the longest one.

    A longest side that is shorter changes the size of most images.
    """
    if "shortest_edge" in size:
        longest = size.get("longest_edge") or math.inf
        return bool(longest >= MIN_ASPECT * size["shortest_edge"])
    return "height" in size and size["height"] == size.get("width")
