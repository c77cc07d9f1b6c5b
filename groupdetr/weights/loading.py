"""Loads weights of any known layout into a model.

A file is recognised by the names of its tensors, converted to our names, and fitted to the model.
The report has a line for each step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from groupdetr.checkpoints import native
from groupdetr.checkpoints.layout import IdAndName, Layout, Metadata, RecipeFields, refuse
from groupdetr.checkpoints.metadata import (
    COUNTS_OF_MODULES,
    MAX_IMGSZ,
    UNTRUSTED,
    check_categories,
    check_recipe_fields,
    check_text,
    invalid,
)
from groupdetr.checkpoints.native import unique_state
from groupdetr.checkpoints.reading import Checkpoint, open_checkpoint
from groupdetr.checkpoints.wrappers import unwrap
from groupdetr.console.text import quote
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import GroupDETRError, UsageError, WeightsError
from groupdetr.modeling.backbones.pretrained_layouts import BACKBONES, refuse_backbone_only
from groupdetr.modeling.detr import PARTS, DetectionTransformer, part_of
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes, count_by_name, declared_axes
from groupdetr.weights.adapt import (
    check_classes,
    count_classes,
    count_flat_rows,
    fit_groups,
    lacks_groups,
    replace_classes,
    unflatten_groups,
)
from groupdetr.weights.coco_names import UNUSED_CLASS
from groupdetr.weights.detrex_dino import DETREX_DINO
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_lw_detr import HUGGING_FACE_LW_DETR
from groupdetr.weights.huggingface_mask2former import HUGGING_FACE_MASK2FORMER
from groupdetr.weights.huggingface_rf_detr import (
    HUGGING_FACE_RF_DETR,
    HUGGING_FACE_RF_DETR_MODULES,
    HUGGING_FACE_RF_DETR_SEG,
)
from groupdetr.weights.official_conditional_detr import OFFICIAL
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO
from groupdetr.weights.official_lw_detr import OFFICIAL_LW_DETR
from groupdetr.weights.official_mask2former import OFFICIAL_MASK2FORMER
from groupdetr.weights.official_petr import MMDET3D_PETR, OFFICIAL_PETR
from groupdetr.weights.paddledetection_dino import PADDLEDETECTION_DINO
from groupdetr.weights.recipe_sizes import sizes_from_tensors
from groupdetr.weights.roboflow_rf_detr import ROBOFLOW_RF_DETR, ROBOFLOW_RF_DETR_SEG
from groupdetr.weights.windowed_vit_sizes import POSITION, position_grid

# Recipe fields of the image's position embedding. They differ between published weights of one
# detector and do not follow from the tensors. The model is changed to those of the file.
POSITION_FIELDS = ("temperature", "offset")
# A model may have this many times the elements of its file, plus these, about 500 MB.
MAX_GROWTH = 4
MIN_ELEMENTS = 2**27
COUNTER = ".num_batches_tracked"  # how the name of the counter of a batch norm ends
# Other recipe fields that do not follow from the tensors, with the parts that depend on them. The
# model keeps its own, and the report has a line for each that differs.
OTHER_FIELDS = {
    "num_heads": ("encoder", "decoder"),
    "dilated": ("backbone",),
    "eps": ("decoder", "queries", "heads"),
    "cross_attention_heads": ("decoder",),
    "num_windows": ("backbone",),
    "global_blocks": ("backbone",),
    "map_blocks": ("backbone",),
}


def _native_recipe(file: Checkpoint) -> RecipeFields:
    fields = dict(file.metadata.get("recipe", {}))
    fields.pop("class", None)  # not a field: the class of the recipe
    # A file cannot make this library read another file, or download one.
    fields.pop("pretrained_backbone", None)
    return fields


def _native_categories(metadata: Metadata) -> list[IdAndName]:
    return [(id, name) for id, name in metadata.get("categories", [])]


def _native_preset(file: Checkpoint) -> str:
    recipe = _native_recipe(file)
    if "preset" not in recipe:
        raise WeightsError(
            "the file does not say which model it is",
            file.where,
            f"name the model: groupdetr import {quote(file.where)} --model NAME "
            "(Python: preset=NAME)",
        )
    return str(recipe["preset"])


NATIVE = Layout(
    title="groupdetr",
    preset=_native_preset,
    signature=("backbone.network.*", "decoder.*"),
    names={"*": "*"},
    options=_native_recipe,
    categories=_native_categories,
)
# Fields of a recipe on which the shapes of a file do not depend, or whose values may differ from it
FREE_FIELDS = (
    *("preset", "pretrained_backbone", "recompute", "dropout"),
    *("num_groups", "num_queries", "num_detections", "num_classes", "inference_group"),
)
# A file has the first layout that fits. The names of DN-DETR fit DAB-DETR, too.
LAYOUTS = (
    NATIVE,
    OFFICIAL,
    OFFICIAL_DN,
    OFFICIAL_DAB,
    OFFICIAL_DINO,
    OFFICIAL_DAB_DEFORMABLE,
    DETREX_DINO,
    PADDLEDETECTION_DINO,
    OFFICIAL_LW_DETR,
    ROBOFLOW_RF_DETR_SEG,  # Its files have all names of a detector, too.
    ROBOFLOW_RF_DETR,
    HUGGING_FACE_LW_DETR,
    HUGGING_FACE_RF_DETR_SEG,
    HUGGING_FACE_RF_DETR,
    HUGGING_FACE_RF_DETR_MODULES,
    HUGGING_FACE,
    HUGGING_FACE_DAB,
    OFFICIAL_MASK2FORMER,
    HUGGING_FACE_MASK2FORMER,
    OFFICIAL_PETR,
    MMDET3D_PETR,
)


@dataclass
class LoadReport:
    """What `load_weights` has done."""

    lines: list[str] = field(default_factory=list)  # one for each step
    # The recipe fields of the model that were changed to the values of the file.
    recipe_changes: dict[str, float] = field(default_factory=dict)

    def add(self, lines: Sequence[str]) -> None:
        """Add lines to the report and to the log of the library."""
        self.lines += lines
        for line in lines:
            logging.getLogger("groupdetr").info(line)


def load_weights(
    model: DetectionTransformer,
    source: str | Path,
    *,
    new_head: bool = False,
    class_names: Sequence[str] | None = None,
    file_groups: int | None = None,
    layout: str | None = None,
    entry: str | None = None,
    parts: Sequence[str] = PARTS,
) -> LoadReport:
    """Load weights of this library, of an official layout, or of another one that is known.

    The numbers of groups K and of queries N may differ between file and model. Rows of the file are
    loaded as far as they reach. ``new_head`` permits other classes: the rows of classes that both
    the file and ``class_names`` (those of the model) have are loaded, the others newly initialised.
    ``file_groups`` is K of a file that has K*N query rows and does not say how many groups they
    are. ``layout`` is the title of the layout of a file that may have several and does not say
    which. ``entry`` selects one of several sets of weights in a file, such as ``ema``, by its key.
    ``parts`` are those of the model whose weights are loaded: backbone, encoder, decoder (without
    its heads), queries and heads. The others stay as they are, and the file may have any others.

    The temperature and the offset of the image's position embedding become those of the file, in
    the model and in ``model.recipe``. `WeightsError` if the weights do not fit; the model is then
    unchanged. `UsageError` for a part that the model does not have.

    Which axes of the parameters are the groups, the queries and the classes is what the modules of
    the model declare (`groupdetr.modeling.parameter_axes`).

    >>> model = groupdetr.create_model("dino-4scale-r50", num_classes=91, num_groups=11)
    >>> report = groupdetr.load_weights(model, "checkpoint0011_4scale.pth")
    >>> for line in report.lines:
    ...     print(line)
    """
    assert isinstance(model.recipe, Recipe)
    model_state = unique_state(model)
    # Files do not contain buffers that are not persistent.
    declared = {name: axes for name, axes in declared_axes(model).items() if name in model_state}
    expect_recipe_sizes(declared, model_state, model.recipe)
    model_state = of_parts(model_state, parts)
    expect_parts(model_state, parts)
    declared = {name: axes for name, axes in declared.items() if name in model_state}

    file_layout, file = convert_checkpoint(source, layout, entry)
    where = file.where
    file_recipe = file_options(file_layout, file)
    report = LoadReport()
    report.add([f"{where}: read as {file_layout.title}, {len(file.state)} tensors", *file.notes])
    whole_file = file
    file = replace(file, state=of_parts(file.state, parts))
    file = replace(file, state=with_timm_module(file.state, model_state))
    file = replace(file, state=with_counters(file.state, model_state))
    with remedy_for_another_model(file_layout, whole_file, model.recipe):
        refuse(file.state.keys() - model.state_dict().keys(), "the model has no", where)
        refuse(model_state.keys() - file.state.keys(), "the file has no", where)
        refuse(
            unequal_shared_parameters(model, file.state),
            "the model's layers share these, which differ in the file:",
            where,
        )
        expect_dimensions(file.state, model_state, declared, where)
        expect_positions(file.state, model_state, where)
        # The state of a training has a shared parameter under each of its names.
        first_named = {name: file.state[name] for name in model_state}
        fixed = of_fixed_size(first_named, model)
        refuse(shape_mismatches(fixed, model_state), "of another shape than the model's:", where)

    state = restore_groups(file, model_state, declared, file_groups, model.recipe.num_queries)
    # A parameter that layers share is loaded under its first name.
    state = {name: state[name] for name in model_state}
    takes_all = set(parts) == set(PARTS)
    # Most parts have no parameters with an axis of classes. A whole model must have one.
    if takes_all or count_by_name(Axis.CLASS, declared, model_state):
        file_classes = count_classes(state, declared, where)
        model_classes = count_classes(model_state, declared, where)
        file_names = [name for _, name in file_categories(file_layout, file, file_classes)]
        model_names = class_names or ()
        if model_names and len(model_names) != model_classes:
            raise UsageError(
                f"{len(model_names)} class names for a model with {model_classes} classes",
                where,
                "pass a name in class_names for every class of the model",
            )
        if new_head:
            report.add(replace_classes(state, model_state, declared, file_names, model_names))
        else:
            check_classes((file_classes, model_classes), file_names, model_names, where)
    # The classes of proposal heads are those of the model by now.
    report.add(fit_groups(state, model_state, declared))

    refuse(shape_mismatches(state, model_state), "of another shape than the model's:", where)
    not_finite = [name for name, value in state.items() if not value.isfinite().all()]
    refuse(not_finite, "not all finite:", where)

    model_recipe = asdict(model.recipe)
    if "encoder" in parts:
        report.recipe_changes = position_changes(model_recipe, file_recipe)
    report.add(describe_differences(model_recipe, file_recipe, parts))
    if not takes_all:
        report.add(describe_parts(state, parts))
    model.load_state_dict(state, strict=False)
    if report.recipe_changes:
        model.recipe = model.recipe.with_options(**report.recipe_changes)
        new_recipe = model_recipe | report.recipe_changes
        model.encoder.set_position_embedding(new_recipe["temperature"], new_recipe["offset"])
    return report


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
            with torch.device("meta"):
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


def expect_recipe_sizes(
    declared: Mapping[str, ParameterAxes], state: Mapping[str, Tensor], recipe: Recipe
) -> None:
    """Raise `UsageError` if declared axes of groups or classes have other sizes than the recipe's.

    ``state`` is that of the model. Rows of the wrong axis would be loaded otherwise.
    """
    for axis, expected in ((Axis.GROUP, recipe.num_groups), (Axis.CLASS, recipe.num_classes)):
        for name, count in count_by_name(axis, declared, state).items():
            if count != expected:
                shape = tuple(state[name].shape)
                raise UsageError(
                    f"the axes of {name} {shape} are declared as {declared[name]}, and the recipe "
                    f"of the model has num_groups={recipe.num_groups} and "
                    f"num_classes={recipe.num_classes}",
                    "parameter_axes() of the module that has this parameter",
                    "correct the order of the declared axes, or the size of the parameter",
                )


def position_changes(model: Metadata, file: Metadata) -> dict[str, float]:
    """Return the position embedding fields of the file's recipe that differ from the model's."""
    return {name: file[name] for name in POSITION_FIELDS if _differs(name, model, file)}


def of_parts(state: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of a state whose part of the model is one of ``parts``.

    A tensor that belongs to no part of a model is kept, to be refused.
    """
    other_parts = set(PARTS) - set(parts)
    return {name: tensor for name, tensor in state.items() if part_of(name) not in other_parts}


def expect_parts(state: Mapping[str, Tensor], parts: Sequence[str]) -> None:
    """Raise `UsageError` unless the model, whose tensors are ``state``, has each of ``parts``."""
    existing = {part_of(name) for name in state}
    for part in parts:
        if part not in PARTS or (part not in existing and set(parts) != set(PARTS)):
            raise UsageError(
                f"this model has no weights of a part called {part!r}",
                remedy=f"choose from {', '.join(PARTS)}",
            )


def describe_parts(state: Mapping[str, Tensor], parts: Sequence[str]) -> list[str]:
    """Return a line for each part that was loaded, and one that names the others."""
    lines = []
    for part in parts:
        tensors = [tensor for name, tensor in state.items() if part_of(name) == part]
        millions = sum(tensor.numel() for tensor in tensors) / 1e6
        lines.append(f"{part}: loaded {len(tensors)} tensors, {millions:.2f} M values")
    others = [part for part in PARTS if part not in parts]
    return [*lines, f"{', '.join(others)}: not taken from the file"]


def describe_differences(model: Metadata, file: Metadata, parts: Sequence[str]) -> list[str]:
    """Return a line for each recipe field that differs and does not follow from the tensors.

    ``parts`` are those whose weights are loaded.
    """
    lines = []
    for name in POSITION_FIELDS:
        if "encoder" in parts and _differs(name, model, file):
            theirs, ours = file[name], model[name]
            lines.append(
                f"{name}: {theirs:g} in the file, {ours:g} in the model: set to {theirs:g}"
            )
    for name, dependent_parts in OTHER_FIELDS.items():
        if any(part in parts for part in dependent_parts) and _differs(name, model, file):
            lines.append(
                f"{name}: {file[name]} in the file, {model[name]} in the model: "
                "the predictions will differ from those of the original"
            )
    return lines


def _differs(name: str, model: Metadata, file: Metadata) -> bool:
    """True if both recipes have the field, with different values."""
    ours, theirs = model.get(name), file.get(name)
    return ours is not None and theirs is not None and ours != theirs


def file_options(layout: Layout, file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that a file's metadata gives.

    `WeightsError` if they are not numbers, texts, or lists of these.
    """
    with odd_metadata(file.where):
        options = layout.options(file)
    check_recipe_fields(options, file.where)
    return options


def file_preset(layout: Layout, file: Checkpoint) -> str:
    """Return the preset that a file belongs to. `WeightsError` if that is unclear."""
    with odd_metadata(file.where):
        preset = layout.preset(file)
    check_text("the name of the model", preset, file.where)
    return preset


def file_image_size(layout: Layout, file: Checkpoint) -> int | None:
    """Return the shortest side of the images of a file in pixels, None if it does not say it.

    `WeightsError` if it is larger than any image can be.
    """
    with odd_metadata(file.where):
        side = layout.image_size(file)
    if side is not None and not 1 <= side <= MAX_IMGSZ:
        raise invalid("the size of images", side, f"at most {MAX_IMGSZ} pixels", file.where)
    return side


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
    with torch.device("meta"):
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


@contextmanager
def odd_metadata(where: str) -> Iterator[None]:
    """Turn the errors of reading metadata into a `WeightsError`.

    The entries may be anything, and fail in as many ways.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise WeightsError(
            f"the metadata of this file cannot be used: {str(e).partition(chr(10))[0][:200]}",
            where,
            "get the file again from a source that you trust",
        ) from e


def convert_checkpoint(
    source: str | Path, layout_title: str | None = None, entry: str | None = None
) -> tuple[Layout, Checkpoint]:
    """Return a file's layout, and its tensors under our names.

    ``layout_title`` selects that layout, if the file's names fit it. A file without metadata has
    the only layout that its names fit, if there is only one. ``entry`` as in `load_weights`.
    """
    checkpoint = unwrap(_open(source, entry), (*LAYOUTS, *BACKBONES))
    refuse_adapters(checkpoint)
    fitting = [layout for layout in LAYOUTS if layout.fits(checkpoint.state)]
    is_unambiguous = len(fitting) == 1 and not checkpoint.metadata
    for layout in fitting:
        if layout_title is None:
            is_selected = is_unambiguous or layout.matches_metadata(checkpoint.metadata)
        else:
            is_selected = layout.title == layout_title
        if is_selected:
            averages = [key for key in layout.averages if key in checkpoint.other_entries]
            if entry is None and averages:
                return convert_checkpoint(source, layout.title, averages[0])
            return layout, layout.convert(checkpoint)

    if fitting:
        titles = " or ".join(layout.title for layout in fitting)
        title = fitting[0].title
        raise WeightsError(
            f"by its names it may be {titles}, and it does not say which",
            checkpoint.where,
            f'name the layout: groupdetr import {quote(checkpoint.where)} --layout "{title}" '
            f'(Python: layout="{title}")',
        )
    if any(layout.fits(checkpoint.state) for layout in BACKBONES):
        refuse_backbone_only(checkpoint)
    known = ", ".join(layout.title for layout in LAYOUTS)
    refuse(checkpoint.state, f"no known layout ({known}) has these names:", checkpoint.where)
    raise WeightsError(
        "there is no tensor in the file",
        checkpoint.where,
        "pass a file with the weights of a model",
    )


def refuse_adapters(checkpoint: Checkpoint) -> None:
    """Raise `WeightsError` for weights with low-rank adapters (LoRA), which are not merged."""
    adapters = [name for name in checkpoint.state if ".base_model.model." in f".{name}"]
    if adapters or any(".lora_" in name for name in checkpoint.state):
        path = Path(checkpoint.where).absolute()
        raise WeightsError(
            "these weights have low-rank adapters (LoRA), which are not merged into the network",
            checkpoint.where,
            "merge them with the program that trained them, and pass the merged weights; with "
            f"rfdetr: m = rfdetr.RFDETR.from_checkpoint({str(path)!r}), then torch.save("
            '{"model": m.model.model.state_dict(), "args": {**vars(m.model.args), '
            '"class_names": m.class_names}}, "merged.pth")',
        )


def _open(source: str | Path, entry: str | None) -> Checkpoint:
    """Open a checkpoint. For the name of a model, the error says where weights come from."""
    # Presets are above this package, and only this error needs them.
    from groupdetr.registry import list_models

    if str(source) in list_models() and not Path(source).exists():
        raise WeightsError(
            "this is the name of a model, and not a file of its weights",
            str(source),
            "download the published weights of the detector, and pass the file; "
            "docs/reproducing.md lists the files that can be read",
        )
    return open_checkpoint(source, entry)


def file_categories(layout: Layout, file: Checkpoint, num_classes: int) -> list[IdAndName]:
    """Return the id and name of each of the file's classes, of which there are ``num_classes``.

    It is [] if the file has none, or has another number of them. `WeightsError` if they are not
    pairs of an id and a name.
    """
    with odd_metadata(file.where):
        categories = layout.categories(file.metadata)
    check_categories(categories, file.where)
    if layout.has_unused_class and len(categories) == num_classes - 1:
        last_id = max((id for id, _ in categories), default=-1)
        categories = [*categories, (last_id + 1, UNUSED_CLASS)]
    return categories if len(categories) == num_classes else []


def restore_groups(
    file: Checkpoint,
    model: Mapping[str, Tensor],
    declared: Mapping[str, ParameterAxes],
    file_groups: int | None,
    num_queries: int,
) -> dict[str, Tensor]:
    """Return the tensors of a file with an axis of groups where the ``model`` has one.

    Checkpoints of others have flat query tables [K*N,C], which become [K,N,C]. ``declared`` is what
    the model's modules declare (`declared_axes`). ``num_queries`` is N if the file does not say it.
    If the file has other tensors for each group, such as proposal heads, K is their number.
    """
    state = dict(file.state)
    flat, grouped = [], {}
    for name, axes in declared.items():
        if name in state and lacks_groups(state[name], model[name], axes):
            flat.append(name)
        elif name in state:
            grouped[name] = axes
    recorded = set(count_by_name(Axis.GROUP, grouped, state).values())
    if file_groups is not None and (recorded or not flat):
        _expect_recorded_groups(file, grouped, file_groups)
    num_groups = 1
    for name in flat:
        rows = count_flat_rows(state[name], declared[name])
        if rows is not None and len(recorded) == 1:
            num_groups = recorded.pop()
            _expect_whole_groups(name, rows, num_groups, file.where)
            break
        if rows is not None:
            num_groups = count_groups(file, rows, file_groups, num_queries)
            break
    for name in flat:
        state[name] = unflatten_groups(state[name], declared[name], num_groups)
    return state


def _expect_recorded_groups(
    file: Checkpoint, declared: Mapping[str, ParameterAxes], file_groups: int
) -> None:
    """Raise `WeightsError` unless ``file_groups`` is the number of groups that a file records."""
    for name, axes in declared.items():
        axis = axes.index(Axis.GROUP)
        if name in file.state and axis is not None:
            recorded = file.state[name].shape[axis]
            if recorded != file_groups:
                raise WeightsError(
                    f"this file records that it has {recorded} groups, not {file_groups}",
                    file.where,
                    "leave out the number of groups in the file",
                )


def _expect_whole_groups(name: str, rows: int, num_groups: int, where: str) -> None:
    """Raise `WeightsError` unless the rows of a query table are a whole number of groups."""
    if rows % num_groups:
        raise WeightsError(
            f"the {rows} query rows of {name} are not {num_groups} groups, of which the file has "
            "the proposal heads",
            where,
            UNTRUSTED,
        )


def expect_dimensions(
    theirs: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    declared: Mapping[str, ParameterAxes],
    where: str,
) -> None:
    """Raise `WeightsError` if a tensor of the file has not as many axes as the model's.

    It may lack the axis of groups.
    """
    wrong = []
    for name, tensor in theirs.items():
        axes = declared.get(name)
        may_lack_groups = axes is not None and lacks_groups(tensor, ours[name], axes)
        if name in ours and tensor.ndim != ours[name].ndim and not may_lack_groups:
            wrong.append(f"{name} {tuple(tensor.shape)} for {tuple(ours[name].shape)}")
    refuse(wrong, "of another shape than the model's:", where)


def count_groups(file: Checkpoint, rows: int, file_groups: int | None, num_queries: int) -> int:
    """Return how many groups K*N query ``rows`` are.

    The number is ``file_groups`` if given, else what the metadata says, else as many as have N
    queries each. `WeightsError` if the rows are not a whole number of groups.
    """
    num_queries = file.positive_int("num_queries") or num_queries
    groups = file_groups or file.positive_int("group_detr") or rows // num_queries
    is_divisible = groups >= 1 and rows % groups == 0
    if not is_divisible or (file_groups is None and rows != groups * num_queries):
        raise WeightsError(
            f"{rows} query rows are not a whole number of groups of {num_queries}",
            file.where,
            f"say how many groups they are: groupdetr import {quote(file.where)} --file-groups 1 "
            "(Python: file_groups=1)",
        )
    return groups


def unequal_shared_parameters(
    model: DetectionTransformer, state: Mapping[str, Tensor]
) -> list[str]:
    """Return the names of shared parameters whose values in the state differ from the first name's.

    A parameter or buffer that modules of the model share has several names. A file may have all of
    them, but the values must be the same.
    """
    first_names = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        first_names[id(value)] = name
    unequal = []
    all_names = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, value in all_names:
        first_name = first_names[id(value)]
        if name == first_name or name not in state or first_name not in state:
            continue
        if not torch.equal(state[name], state[first_name]):
            unequal.append(name)
    return unequal


def expect_positions(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], where: str) -> None:
    """Raise `WeightsError` if the table of positions of a ViT with windows has another size.

    It is that of the images of the training, and does not limit the size of other images.
    """
    if POSITION not in theirs or POSITION not in ours:
        return
    their_side = position_grid(theirs)
    our_side = position_grid(ours)
    if their_side != our_side:
        raise WeightsError(
            f"the table of positions has {their_side} x {their_side} patches in the file, "
            f"{our_side} x {our_side} in the model",
            where,
            f"give the model that of the file: groupdetr train --set position_grid={their_side} "
            f"(Python: position_grid={their_side}); images may have any size",
        )


def shape_mismatches(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Return a text for each tensor whose shapes differ: its name and its shape in both."""
    return [
        f"{name} {tuple(theirs[name].shape)} for {tuple(ours[name].shape)}"
        for name in theirs
        if theirs[name].shape != ours[name].shape
    ]
