"""Converts a published checkpoint to a file of this library.

The recipe is read from the checkpoint. The model is built, filled and saved.

The sizes of a published checkpoint's model follow from its tensors. Those of groups, queries and
classes are along the axes that the modules of its preset declare. The others are found by the names
of tensors (`recipe_sizes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes, count_by_name, declared_axes
from groupdetr.weights.adapt import count_classes
from groupdetr.weights.loading import (
    LoadReport,
    convert_checkpoint,
    file_categories,
    load_weights,
    restore_groups,
)
from groupdetr.weights.recipe_sizes import sizes_from_tensors

# Recipe field -> the axis whose size it is.
COUNTS = {"num_groups": Axis.GROUP, "num_queries": Axis.QUERY, "num_classes": Axis.CLASS}


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
    from groupdetr.registry import experiment, recipe_to_dict

    file_layout, file = convert_checkpoint(source, layout)
    preset = preset or file_layout.preset(file)
    preset_experiment = experiment(preset)
    preset_recipe = preset_experiment.recipe

    # The caller's options override the metadata, and these override the sizes of tensors.
    known = {**file_layout.options(file), **options}
    known |= {"preset": preset, "pretrained_backbone": False}
    num_heads = known.get("num_heads", preset_recipe.num_heads)
    sizes = sizes_from_tensors(file.state, num_heads)
    known_sizes = {name: size for name, size in sizes.items() if hasattr(preset_recipe, name)}
    fields = {**known_sizes, **known}

    # A model without memory for its parameters is enough to know which of their axes are groups,
    # queries and classes.
    with torch.device("meta"):
        outline = preset_recipe.with_options(**fields).build()
    declared = declared_axes(outline)
    state = restore_groups(
        file, outline.state_dict(), declared, file_groups, preset_recipe.num_queries
    )
    recipe = preset_recipe.with_options(**{**counts_from_tensors(state, declared), **fields})

    model = recipe.build()
    report = load_weights(model, source, file_groups=file_groups, layout=layout)
    num_classes = count_classes(state, declared, file.where)
    categories = file_categories(file_layout, file, num_classes)
    if not categories:
        categories = [(row, f"class {row}") for row in range(recipe.num_classes)]
    imgsz = file.positive_int("imgsz") or preset_experiment.settings.imgsz
    metadata = {"recipe": recipe_to_dict(recipe), "categories": categories, "imgsz": imgsz}
    native.save(model, out, metadata)
    report.add(
        [
            f"{out}: {preset}, {recipe.num_groups} x {recipe.num_queries} queries, "
            f"{recipe.num_classes} classes"
        ]
    )
    return report


def counts_from_tensors(
    state: Mapping[str, Tensor], declared: Mapping[str, ParameterAxes]
) -> dict[str, int]:
    """Return the numbers of groups, queries and classes as recipe fields.

    ``declared`` is what the modules of the model declare (`declared_axes`). A number is left out if
    tensors have different ones, because then it is not the field of the recipe.
    """
    fields = {}
    for field, axis in COUNTS.items():
        counts = set(count_by_name(axis, declared, state).values())
        if len(counts) == 1:
            fields[field] = counts.pop()
    return fields
