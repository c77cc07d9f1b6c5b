"""Whether a file of weights fits a model: the names and shapes of its tensors, and their size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from groupdetr.checkpoints import native
from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout, RecipeFields
from groupdetr.checkpoints.metadata import COUNTS_OF_MODULES, UNTRUSTED, invalid
from groupdetr.checkpoints.native import unique_state
from groupdetr.console.text import quote
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import GroupDETRError, WeightsError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.outline import without_memory
from groupdetr.modeling.parameter_axes import declared_axes
from groupdetr.weights.conversion import file_options, file_preset
from groupdetr.weights.recipe_sizes import sizes_from_tensors

# A model may have this many times the elements of its file, plus these, about 500 MB.
MAX_GROWTH = 4
MIN_ELEMENTS = 2**27
COUNTER = ".num_batches_tracked"  # how the name of the counter of a batch norm ends
# Fields of a recipe on which the shapes of a file do not depend, or whose values may differ from it
FREE_FIELDS = (
    *("preset", "pretrained_backbone", "recompute", "dropout"),
    *("num_groups", "num_queries", "num_detections", "num_classes", "inference_group"),
)


def build_for_file(recipe: Recipe, path: Path) -> DetectionTransformer:
    """Return the model of the recipe that a file of this library has, with random weights.

    It is built without memory first. `WeightsError` if it cannot be built, or if it is larger than
    the file: metadata are data of somebody else, and must not fill the memory.
    """
    where = str(path)
    sizes = native.sizes(path)
    expect_modules_of_file(recipe, len(sizes), where)
    with errors_of_a_recipe(recipe, where):
        try:
            with without_memory():
                outline = recipe.build()
        except NotImplementedError:
            # A plugin may use operations that need values. It is code that the user has chosen.
            return recipe.build()
        expect_size_of_file(outline, sizes, where)
        return recipe.build()


def expect_modules_of_file(recipe: Recipe, num_tensors: int, where: str) -> None:
    """Raise `WeightsError` if a recipe has more layers than its file has tensors.

    Layers take time to build, even without memory, and every layer has some tensors. What the
    fields of a recipe from outside of this library count is not known.
    """
    if not type(recipe).__module__.startswith("groupdetr."):
        return
    for name, value in asdict(recipe).items():
        is_count = any(part in name for part in COUNTS_OF_MODULES)
        if is_count and type(value) is int and value > num_tensors:
            raise invalid(name, value, f"at most the {num_tensors} tensors of the file", where)


@contextmanager
def errors_of_a_recipe(recipe: Recipe, where: str) -> Iterator[None]:
    """Turn the errors of building a recipe from a file into a `WeightsError`.

    A field has a valid value on its own, but it may not fit the others. Errors of a recipe from
    outside of this library are left as they are, because its author needs to see them.
    """
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        if not type(recipe).__module__.startswith("groupdetr."):
            raise
        reason = getattr(error, "what", str(error) or type(error).__name__)
        raise WeightsError(
            f"no model can be built from the recipe in this file: {reason.splitlines()[0][:200]}",
            where,
            UNTRUSTED,
        ) from error


def expect_size_of_file(outline: nn.Module, sizes: Iterable[int], where: str) -> None:
    """Raise `WeightsError` if a model is far larger than the tensors of its file.

    ``outline`` is the model, which may be without memory, and ``sizes`` are the numbers of elements
    of the file's tensors. The model may have more groups and queries.
    """
    ours = sum(tensor.numel() for tensor in unique_state(outline).values())
    theirs = sum(sizes)
    if ours > MAX_GROWTH * theirs + MIN_ELEMENTS:
        raise WeightsError(
            f"the model that this file describes has {ours} parameters, and the file {theirs}",
            where,
            UNTRUSTED,
        )


@contextmanager
def remedy_for_another_model(layout: Layout, file: Checkpoint, recipe: Recipe) -> Iterator[None]:
    """Let an error for tensors that do not fit say which model they are of, if it is another one.

    It is another preset, or that of the model with other sizes. ``recipe`` is that of the model,
    and ``file`` has all tensors of the file.
    """
    try:
        yield
    except WeightsError as error:
        remedy = _remedy_for_another_model(layout, file, recipe)
        if remedy is None:
            raise error from None
        raise WeightsError(error.what, error.where, remedy) from error


def _remedy_for_another_model(layout: Layout, file: Checkpoint, recipe: Recipe) -> str | None:
    """Return what to type for the model that a file is of, None if it is that of the recipe."""
    try:
        preset = file_preset(layout, file)
    except WeightsError:
        preset = recipe.preset  # It may be a model of this preset with other sizes.
    where = quote(file.where)
    presets = [name for name in dict.fromkeys((preset, recipe.preset)) if name]
    for name in presets:
        sizes = other_sizes(layout, file, name)
        if sizes is None:
            continue
        if name == recipe.preset and sizes.keys() <= {"position_grid"}:
            return None  # The error of a table of positions has a remedy of its own.
        if sizes:
            options = " ".join(quote(f"{key}={json.dumps(size)}") for key, size in sizes.items())
            keywords = ", ".join(f"{key}={size!r}" for key, size in sizes.items())
            return (
                f"give {name} the sizes of the file: groupdetr train DATA --model {name} "
                f"--weights {where} --set {options} "
                f"(Python: groupdetr.create_model({name!r}, {keywords}))"
            )
        break
    if preset == recipe.preset:
        return None
    return (
        f"these are weights of {preset}, and the model is {recipe.preset or 'another one'}: "
        f"groupdetr train DATA --model {preset} --weights {where} "
        f"(Python: groupdetr.create_model({preset!r}))"
    )


def other_sizes(layout: Layout, file: Checkpoint, preset: str) -> RecipeFields | None:
    """Return the fields with which a preset has the names and shapes of the file's tensors.

    They are those whose values differ from the preset's: {} if the preset fits as it is, None if
    the tensors do not fit even with them. The numbers of groups, queries and classes are left out,
    because they may differ.
    """
    # Presets are above this package, and only this error needs them.
    from groupdetr.registry import experiment

    try:
        recipe = experiment(preset).recipe
        if has_sizes_of(file, recipe):
            return {}
        options = file_options(layout, file)
        sizes = sizes_from_tensors(file.state, options.get("num_heads", recipe.num_heads))
        fields = asdict(recipe)
        changes = {}
        for name, value in {**sizes, **options}.items():
            # JSON has lists for tuples.
            value = tuple(value) if isinstance(value, list) else value
            if name in fields and name not in FREE_FIELDS and value != fields[name]:
                changes[name] = value
        return changes if has_sizes_of(file, recipe.with_options(**changes)) else None
    except (ArithmeticError, GroupDETRError, LookupError, TypeError, ValueError):
        return None


def has_sizes_of(file: Checkpoint, recipe: Recipe) -> bool:
    """Return whether a model has the names and the shapes of all tensors of a file.

    The numbers of groups, queries and classes may differ.
    """
    with without_memory():
        model = replace(recipe, pretrained_backbone=False).build()
    state = unique_state(model)
    theirs = with_counters(with_timm_module(file.state, state), state)
    # The state of a training has a shared parameter under each of its names.
    if not state.keys() <= theirs.keys() <= model.state_dict().keys():
        return False
    first_named = {name: theirs[name] for name in state}
    return not shape_mismatches(of_fixed_size(first_named, model), state)


def of_fixed_size(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state without an axis of groups, queries or classes."""
    declared = declared_axes(model)
    return {name: tensor for name, tensor in state.items() if name not in declared}


def with_timm_module(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file with the names that a network of timm has in the model.

    There, it is inside of a module ``model``, which the files of others do not have. Neither have
    they the counters of its batch norms, which remain as they are.
    """
    network, inner = "backbone.network.", "backbone.network.model."
    is_inside = any(name.startswith(inner) for name in model)
    if not is_inside or any(name.startswith(inner) for name in file):
        return dict(file)
    renamed = {name: value for name, value in model.items() if name.endswith(COUNTER)}
    for name, value in file.items():
        is_of_network = name.startswith(network)
        renamed[inner + name.removeprefix(network) if is_of_network else name] = value
    return renamed


def with_counters(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file with the model's counters of batch norms that the file lacks.

    The files of others are read without counters. Batch norms whose momentum is a number, as that
    of all of ours is, do not use them.
    """
    counters = {name: value for name, value in model.items() if name.endswith(COUNTER)}
    return {**counters, **file}


def shape_mismatches(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Return a text for each tensor whose shapes differ: its name and its shape in both."""
    return [
        f"{name} {tuple(theirs[name].shape)} for {tuple(ours[name].shape)}"
        for name in theirs
        if theirs[name].shape != ours[name].shape
    ]
