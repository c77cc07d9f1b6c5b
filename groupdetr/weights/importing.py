"""A published checkpoint as a file of ours: its recipe is read off it, the model built, filled and saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.weights.adapt import PROPOSING, TABLES
from groupdetr.weights.loading import LoadReport, categories, load_weights, translate, unfold

SHOWN = {
    "num_groups": (f"{TABLES.pattern}|{PROPOSING.pattern}", 0),
    "num_queries": (TABLES.pattern, 1),
    "num_patterns": (r"queries\..*patterns", 0),
    "channels": (r"decoder\.heads\.0\.classify\.weight", 1),
    "num_classes": (r"decoder\.heads\.0\.classify\.weight", 0),
    "encoder_hidden": (r"encoder\.encoder\.layers\.0\.feed_forward\.expand\.weight", 0),
    "hidden": (r"decoder\.layers\.0\.feed_forward\.expand\.weight", 0),
    "num_levels": (r"encoder\.level", 0),
}  # field of a recipe: a tensor that shows it, and on which axis
LAYERS = {
    "encoder": r"encoder\.(?:encoder\.)?layers",
    "decoder": r"decoder\.layers",
}  # Mask2Former's: a part of a part


def import_weights(
    source: str | Path,
    out: str | Path,
    preset: str | None = None,
    file_groups: int | None = None,
    layout: str | None = None,
    **options: Any,
) -> LoadReport:
    """Write the weights of ``source`` to ``out``, a .safetensors file of ours that knows its recipe and classes.

    ``preset``: by default the one that the file asks for. ``options``: fields of the recipe to be otherwise than in
    the file, such as ``num_groups=1``, which keeps group 0. ``file_groups`` and ``layout`` as in `load_weights`.
    """
    from groupdetr.experiments import experiment  # of a floor above: only who imports needs presets

    kind, file = translate(source, layout)
    told = kind.options(file.facts)
    preset = preset or kind.preset(file)
    trained = experiment(preset)
    recipe = trained.recipe
    num_heads = {"num_heads": recipe.num_heads, **told, **options}["num_heads"]
    seen = sizes(unfold(file, file_groups, recipe.num_queries), num_heads)
    recipe = recipe.with_options(
        **{**told, **seen, **options, "preset": preset, "pretrained_backbone": False}
    )
    model = recipe.build()
    report = load_weights(model, source, file_groups=file_groups, layout=layout)
    classes = categories(kind, file) or [(row, f"class {row}") for row in range(recipe.num_classes)]
    imgsz = file.number("imgsz") or trained.settings.imgsz
    native.save(model, out, {"recipe": asdict(recipe), "categories": classes, "imgsz": imgsz})
    report.say(
        [
            f"{out}: {preset}, {recipe.num_groups} x {recipe.num_queries} queries, {recipe.num_classes} classes"
        ]
    )
    return report


def sizes(state: Mapping[str, Tensor], num_heads: int) -> dict[str, int]:
    """Fields of a recipe that show in the shapes and names of its tensors, heads of attention being known."""
    named = {
        field: [name for name in state if re.fullmatch(mark, name)]
        for field, (mark, _) in SHOWN.items()
    }
    found = {
        field: state[names[0]].shape[SHOWN[field][1]] for field, names in named.items() if names
    }
    if "num_levels" in found:
        weights = next(
            name
            for name in state
            if re.fullmatch(rf"{LAYERS['encoder']}\.0\.attention\.weights\.bias", name)
        )
        found["num_points"] = len(state[weights]) // (num_heads * found["num_levels"])
    counts = {f"{part}_layers": _count(state, layers) for part, layers in LAYERS.items()}
    return found | {field: count for field, count in counts.items() if count}


def _count(state: Mapping[str, Tensor], layers: str) -> int:
    """How many layers of that name there are."""
    return len({found[1] for name in state if (found := re.match(rf"{layers}\.(\d+)\.", name))})
