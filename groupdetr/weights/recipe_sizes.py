"""The sizes of a built-in detector that follow from the names and shapes of its tensors.

Only the import of a published checkpoint needs them, because it has to build a model for a file
that does not say how large the model is. A file of this library contains its recipe. So these names
are facts about the recipes of this repository, and a detector from outside of it does not need
them. The numbers of groups, queries and classes are not here: modules declare them
(`groupdetr.modeling.parameter_axes`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Recipe field -> pattern of the name of a tensor, and the axis of it whose size is the field.
SIZES = {
    "num_patterns": (r"queries\..*patterns", 0),
    "channels": (r"decoder\.heads\.0\.classify\.weight", 1),
    "encoder_dim_feedforward": (r"encoder\.encoder\.layers\.0\.feed_forward\.expand\.weight", 0),
    "dim_feedforward": (r"decoder\.layers\.0\.feed_forward\.expand\.weight", 0),
    "num_levels": (r"encoder\.level_embed", 0),
}
# Mask2Former's deformable encoder is a part of its pixel decoder.
ENCODER_LAYERS = r"encoder\.(?:encoder\.)?layers"
DECODER_LAYERS = r"decoder\.layers"
# [heads * levels * points], of the first encoder layer.
ATTENTION_WEIGHTS = rf"{ENCODER_LAYERS}\.0\.attention\.attention_weights\.bias"


def sizes_from_tensors(state: Mapping[str, Tensor], num_heads: int) -> dict[str, int]:
    """Return the recipe fields that follow from the names and shapes of the tensors.

    The number of attention heads does not follow from them, so it is given.
    """
    sizes = {}
    for field, (pattern, axis) in SIZES.items():
        tensor = find_tensor(state, pattern)
        if tensor is not None:
            sizes[field] = tensor.shape[axis]
    attention_weights = find_tensor(state, ATTENTION_WEIGHTS)
    if "num_levels" in sizes and attention_weights is not None:
        sizes["num_points"] = len(attention_weights) // (num_heads * sizes["num_levels"])
    layers = {"encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS}
    for field, prefix in layers.items():
        count = count_layers(state, prefix)
        if count:
            sizes[field] = count
    return sizes


def find_tensor(state: Mapping[str, Tensor], pattern: str) -> Tensor | None:
    """Return the first tensor whose name matches, None if there is none."""
    for name, value in state.items():
        if re.fullmatch(pattern, name):
            return value
    return None


def count_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of layers whose names start with this pattern."""
    indices = set()
    for name in state:
        match = re.match(rf"{prefix}\.(\d+)\.", name)
        if match:
            indices.add(match[1])
    return len(indices)
