"""Sizes of LW-DETR and RF-DETR that follow from tensors under our names, and the preset they fit.

The shapes do not show which blocks of the Vision Transformer attend globally, which of them return
a map, the number of windows, and the numbers of attention heads. They come from the metadata of a
file or, without it, from the preset.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import RecipeFields
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError
from groupdetr.weights.recipe_sizes import count_layers, sizes_from_tensors

PATCH_CONV = "backbone.network.embed.patch_conv.weight"  # [w,3,patch,patch]
POSITION = "backbone.network.embed.position"  # [1, 1 + side * side, w]
# How the name of a level of the projector begins; RF-DETR-Seg has one more `encoder.`
LEVELS = ("encoder.levels", "encoder.encoder.levels")


def sizes_of_network(state: Mapping[str, Tensor]) -> RecipeFields:
    """Return the recipe fields that follow from the tensors of LW-DETR or RF-DETR.

    `LookupError` or `ValueError` if these are no tensors of such a network.
    """
    width, _, patch, _ = state[PATCH_CONV].shape
    levels = projector_levels(state)
    attention_weights = state["decoder.layers.0.cross_attention.attention_weights.bias"]
    sampling_offsets = state["decoder.layers.0.cross_attention.sampling_offsets.bias"]
    if len(sampling_offsets) != 2 * len(attention_weights):
        raise ValueError("the sampling offsets are not two numbers for each attention weight")
    # The number of self-attention heads follows from no tensor, and does not matter here.
    common = sizes_from_tensors(state, num_heads=1)
    return {
        **{name: common[name] for name in ("channels", "dim_feedforward", "decoder_layers")},
        "vit_width": width,
        "vit_depth": count_layers(state, r"backbone\.network\.blocks"),
        "strides": (patch,),
        "position_grid": position_grid(state),
        "projector_levels": levels,
    }


def projector_levels(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the levels of the projector: P3 upsamples the maps, P5 downsamples them."""
    levels: list[str] = []
    for prefix in LEVELS:
        for index in range(count_layers(state, prefix.replace(".", r"\."))):
            names = [name for name in state if name.startswith(f"{prefix}.{index}.resample.")]
            if any(".upsample." in name for name in names):
                levels.append("P3")
            else:
                levels.append("P5" if names else "P4")
    return tuple(levels)


def position_grid(state: Mapping[str, Tensor]) -> int:
    """Return the side of the table of positions, in patches."""
    num_positions = state[POSITION].shape[1] - 1  # The first row is that of the class token.
    return math.isqrt(max(0, num_positions))


def num_points(state: Mapping[str, Tensor], num_heads: int) -> int:
    """Return the sampling points of a head and level, given the heads of the cross-attention."""
    rows = len(state["decoder.layers.0.cross_attention.attention_weights.bias"])
    return rows // (num_heads * len(projector_levels(state)))


def matching_presets(sizes: Mapping[str, object], presets: Iterable[str]) -> list[str]:
    """Return those of the presets whose recipes have these fields."""
    from groupdetr.registry import experiment

    matching = []
    for name in presets:
        recipe = experiment(name).recipe
        if all(getattr(recipe, field) == size for field, size in sizes.items()):
            matching.append(name)
    return matching


def find_preset(
    file: Checkpoint, presets: Sequence[str], fields: Sequence[str], optional: Sequence[str] = ()
) -> str:
    """Return the preset that has the sizes of a file's tensors in these fields.

    The ``optional`` fields need not be equal, but they decide if several presets have the others.
    `WeightsError` if none has them, or if several have.
    """
    sizes = sizes_of_network(file.state)
    required = {name: sizes[name] for name in fields}
    decisive = {name: sizes[name] for name in (*fields, *optional)}
    matching = matching_presets(required, presets)
    best = matching_presets(decisive, matching)
    if len(best) == 1:
        return best[0]
    if len(matching) == 1:
        return matching[0]
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in decisive.items())
    what = f"its sizes are those of {' and '.join(matching)}" if matching else "no model has them"
    raise WeightsError(
        f"the file does not say which model it is, and its sizes are {shown}: {what}",
        file.where,
        f"name the model: groupdetr import {quote(file.where)} --model {(matching or presets)[0]} "
        f"(Python: preset={(matching or presets)[0]!r})",
    )


def _shown(value: Any) -> str:
    return "+".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def integers(value: object) -> tuple[int, ...]:
    """Return an entry of metadata as a tuple of integers. `TypeError` if it is something else."""
    if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
        raise TypeError(f"a list of whole numbers was expected, and not a {type(value).__name__}")
    return tuple(value)
