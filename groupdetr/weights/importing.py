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

from safetensors import SafetensorError, safe_open
from torch import Tensor

from groupdetr.checkpoints import native
from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.file_format import KEY
from groupdetr.checkpoints.layout import Layout, RecipeFields
from groupdetr.checkpoints.metadata import UNTRUSTED, check_recipe_fields, invalid
from groupdetr.console.text import quote
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError, WeightsError
from groupdetr.experiments.experiment import Experiment
from groupdetr.files.replacing import expect_replaceable, same_file
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.outline import without_memory
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes, count_by_name, declared_axes
from groupdetr.weights.adapt import count_classes
from groupdetr.weights.conversion import (
    NATIVE,
    convert_checkpoint,
    file_categories,
    file_image_size,
    file_options,
    file_preset,
)
from groupdetr.weights.file_fit import errors_of_a_recipe, expect_size_of_file
from groupdetr.weights.huggingface_processor import processor_note
from groupdetr.weights.loading import LoadReport, expect_dimensions, load_weights, restore_groups
from groupdetr.weights.recipe_sizes import sizes_from_tensors

THRESHOLD = "score_threshold"  # the entry of metadata that `predict` uses
# Recipe field -> the axis whose size it is.
COUNTS = {"num_groups": Axis.GROUP, "num_queries": Axis.QUERY, "num_classes": Axis.CLASS}


def import_weights(
    source: str | Path,
    out: str | Path,
    preset: str | None = None,
    file_groups: int | None = None,
    layout: str | None = None,
    entry: str | None = None,
    **options: Any,
) -> LoadReport:
    """Write the weights of ``source`` to ``out``, a .safetensors file of this library.

    The file contains the recipe and the classes. ``preset`` is by default the one that the
    checkpoint belongs to. ``options`` are recipe fields that replace those of the checkpoint, such
    as ``num_groups=1``, which keeps the group that answers. ``file_groups``, ``layout`` and
    ``entry`` as in `load_weights`.

    `UsageError` if ``out`` is the source, the weights of a run, or a file that this library did not
    write. Such files are never replaced.
    """
    expect_replaceable_weights(Path(source), Path(out))
    # Presets are above this package, and only an import needs them.
    from groupdetr.registry import experiment, recipe_to_dict

    file_layout, file = convert_checkpoint(source, layout, entry)
    preset_experiment = experiment(preset) if preset else _experiment_of(file_layout, file)
    preset_recipe = preset_experiment.recipe
    preset = preset_recipe.preset

    # The caller's options override the metadata, and these override the sizes of tensors.
    metadata = file_options(file_layout, file)
    known = {**metadata, **options, "preset": preset, "pretrained_backbone": False}
    num_groups, answering = options.get("num_groups"), metadata.get("inference_group")
    if num_groups is not None and type(answering) is int and answering >= num_groups:
        # `load_weights` takes the group that answers as group 0.
        known["inference_group"] = options.get("inference_group", 0)
    sizes = _sizes(file, known.get("num_heads", preset_recipe.num_heads))
    known_sizes = {name: size for name, size in sizes.items() if hasattr(preset_recipe, name)}
    fields = {**known_sizes, **known}
    check_recipe_fields(fields, file.where)

    # A model without memory for its parameters is enough to know which of their axes are groups,
    # queries and classes.
    outline_recipe = _recipe(preset_recipe, fields, options, file.where)
    with errors_of_a_recipe(outline_recipe, file.where), without_memory():
        outline = outline_recipe.build()
    declared = declared_axes(outline)
    expect_dimensions(file.state, outline.state_dict(), declared, file.where)
    state, notes = restore_groups(
        file, outline.state_dict(), declared, file_groups, preset_recipe.num_queries
    )
    counts = counts_from_tensors(state, declared)
    fields = {**counts, **fields}
    recipe = _recipe(preset_recipe, fields, options, file.where)

    model = _build(recipe, file)
    # The queries of the model may be fewer than those of the preset, of which a file without
    # metadata has whole groups.
    file_groups = file_groups or counts.get("num_groups")
    report = load_weights(model, source, file_groups=file_groups, layout=layout, entry=entry)
    report.add(notes)
    num_classes = count_classes(state, declared, file.where)
    categories = file_categories(file_layout, file, num_classes)
    if not categories:
        categories = [(row, f"class {row}") for row in range(recipe.num_classes)]
        report.add([f"the names of its {num_classes} classes are not known: class 0, class 1, ..."])
    imgsz = file_image_size(file_layout, file) or preset_experiment.settings.imgsz
    report.add(processor_note(file.metadata, imgsz))
    metadata = {"recipe": recipe_to_dict(recipe), "categories": categories, "imgsz": imgsz}
    is_same = not options.keys() & {"num_queries", "inference_group"}
    if file_layout is NATIVE and THRESHOLD in file.metadata and is_same:
        # The one with the best F1 of the group that answers, which `groupdetr groups` measured
        metadata[THRESHOLD] = file.metadata[THRESHOLD]
    native.save(model, out, metadata)
    report.add(
        [
            f"{out}: {preset}, {recipe.num_groups} x {recipe.num_queries} queries, "
            f"{recipe.num_classes} classes"
        ]
    )
    return report


def expect_replaceable_weights(source: Path, out: Path) -> None:
    """Raise `UsageError` if an import would replace its source, the weights of a run, or others.

    Other files of weights that this library wrote may be replaced.
    """

    def is_own(file: Path) -> bool:
        in_run = RunFolder(file.parent.parent).config.is_file()
        return not in_run and not same_file(source, file) and is_own_weights(file)

    expect_replaceable([out], is_own, "choose another file with --out (Python: out=FILE)")


def is_own_weights(file: Path) -> bool:
    """True if a file holds weights that this library wrote. Only its header is read."""
    try:
        with safe_open(file, framework="pt") as weights:
            return KEY in (weights.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def _experiment_of(layout: Layout, file: Checkpoint) -> Experiment:
    """Return the experiment that a file belongs to. `WeightsError` if it is unknown or unclear."""
    from groupdetr.registry import experiment

    try:
        return experiment(file_preset(layout, file))
    except WeightsError:
        raise
    except UsageError as error:
        raise WeightsError(error.what, file.where, error.remedy) from error


def _sizes(file: Checkpoint, num_heads: object) -> dict[str, int]:
    """Return the recipe fields that follow from the tensors of a file.

    `WeightsError` if a tensor has fewer axes than it must have.
    """
    if not isinstance(num_heads, int) or num_heads < 1:
        raise invalid("the number of attention heads", num_heads, "at least 1", file.where)
    try:
        return sizes_from_tensors(file.state, num_heads)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise WeightsError(
            "the tensors of this file have other shapes than their names need",
            file.where,
            UNTRUSTED,
        ) from error


def _recipe(
    preset_recipe: Recipe, fields: RecipeFields, options: RecipeFields, where: str
) -> Recipe:
    """Return a recipe with other fields, of which the caller gave the ``options``.

    `UsageError` if the caller's are wrong, `WeightsError` if those of the file are.
    """
    try:
        return preset_recipe.with_options(**fields)
    except (TypeError, UsageError, ValueError) as error:
        reason = getattr(error, "what", str(error))
        of_caller = [f"{name}={value!r}" for name, value in options.items() if name in reason]
        if of_caller:
            raise UsageError(reason, where, f"change {', '.join(of_caller)}") from error
        raise WeightsError(
            f"the metadata or the tensors of this file do not fit the model: {reason}",
            where,
            f"name the model that the weights belong to: groupdetr import {quote(where)} --model "
            "NAME (Python: preset=NAME)",
        ) from error


def _build(recipe: Recipe, file: Checkpoint) -> DetectionTransformer:
    """Return the model for a file. `WeightsError` if it is far larger than the file."""
    with errors_of_a_recipe(recipe, file.where):
        with without_memory():
            outline = recipe.build()
        sizes = [tensor.numel() for tensor in file.state.values()]
        expect_size_of_file(outline, sizes, file.where)
        return recipe.build()


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
