"""Converts a published checkpoint to a file of this library.

The recipe is read from the checkpoint. The model is built, filled and saved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.weights.adapt import PROPOSAL_HEADS, TABLES
from groupdetr.weights.loading import (
    LoadReport,
    convert_checkpoint,
    file_categories,
    load_weights,
    restore_groups,
)

# Recipe field -> pattern of the name of a tensor, and the axis of it whose size is the field.
SIZES = {
    "num_groups": (f"{TABLES.pattern}|{PROPOSAL_HEADS.pattern}", 0),
    "num_queries": (TABLES.pattern, 1),
    "num_patterns": (r"queries\..*patterns", 0),
    "channels": (r"decoder\.heads\.0\.classify\.weight", 1),
    "num_classes": (r"decoder\.heads\.0\.classify\.weight", 0),
    "encoder_dim_feedforward": (r"encoder\.encoder\.layers\.0\.feed_forward\.expand\.weight", 0),
    "dim_feedforward": (r"decoder\.layers\.0\.feed_forward\.expand\.weight", 0),
    "num_levels": (r"encoder\.level_embed", 0),
}
# Mask2Former's deformable encoder is a part of its pixel decoder.
ENCODER_LAYERS = r"encoder\.(?:encoder\.)?layers"
DECODER_LAYERS = r"decoder\.layers"
# [heads * levels * points], of the first encoder layer.
ATTENTION_WEIGHTS = rf"{ENCODER_LAYERS}\.0\.attention\.attention_weights\.bias"


def import_weights(
    source: str | Path,
    out: str | Path,
    preset: str | None = None,
    file_groups: int | None = None,
    layout: str | None = None,
    **options: Any,
) -> LoadReport:
    """Write the weights of ``source`` to ``out``, a .safetensors file of this library.

    The file contains the recipe and the classes. ``preset`` is by default the one that the
    checkpoint belongs to. ``options`` are recipe fields that replace those of the checkpoint, such
    as ``num_groups=1``, which keeps group 0. ``file_groups`` and ``layout`` as in `load_weights`.
    """
    # Presets are above this package, and only an import needs them.
    from groupdetr.experiments import experiment

    file_layout, file = convert_checkpoint(source, layout)
    preset = preset or file_layout.preset(file)
    preset_experiment = experiment(preset)
    preset_recipe = preset_experiment.recipe

    # The caller's options override the sizes of tensors, and these override the metadata.
    file_recipe = file_layout.options(file.metadata)
    num_heads = {"num_heads": preset_recipe.num_heads, **file_recipe, **options}["num_heads"]
    state = restore_groups(file, file_groups, preset_recipe.num_queries)
    fields = {**file_recipe, **sizes_from_tensors(state, num_heads), **options}
    fields |= {"preset": preset, "pretrained_backbone": False}
    recipe = preset_recipe.with_options(**fields)

    model = recipe.build()
    report = load_weights(model, source, file_groups=file_groups, layout=layout)
    categories = file_categories(file_layout, file)
    if not categories:
        categories = [(row, f"class {row}") for row in range(recipe.num_classes)]
    imgsz = file.positive_int("imgsz") or preset_experiment.settings.imgsz
    metadata = {"recipe": asdict(recipe), "categories": categories, "imgsz": imgsz}
    native.save(model, out, metadata)
    report.add(
        [
            f"{out}: {preset}, {recipe.num_groups} x {recipe.num_queries} queries, "
            f"{recipe.num_classes} classes"
        ]
    )
    return report


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
