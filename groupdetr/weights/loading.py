"""Loads weights of any known layout into a model.

A file is recognised by the names of its tensors and converted to our names (`conversion.py`),
compared with the model (`file_fit.py`), and fitted to it. The report has a line for each step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Metadata, refuse
from groupdetr.checkpoints.metadata import UNTRUSTED
from groupdetr.checkpoints.native import unique_state
from groupdetr.console.text import quote
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import UsageError, WeightsError
from groupdetr.modeling.detr import PARTS, DetectionTransformer, part_of
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes, count_by_name, declared_axes
from groupdetr.weights.adapt import (
    check_classes,
    count_classes,
    count_flat_rows,
    exchange_groups,
    fit_groups,
    lacks_groups,
    replace_classes,
    unflatten_groups,
)
from groupdetr.weights.conversion import convert_checkpoint, file_categories, file_options
from groupdetr.weights.file_fit import (
    of_fixed_size,
    remedy_for_another_model,
    shape_mismatches,
    with_counters,
    with_timm_module,
)
from groupdetr.weights.windowed_vit_sizes import POSITION, position_grid

# Recipe fields of the image's position embedding. They differ between published weights of one
# detector and do not follow from the tensors. The model is changed to those of the file.
POSITION_FIELDS = ("temperature", "offset")
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
    loaded as far as they reach, and the group that answers in the file is never left out.
    ``new_head`` permits other classes: the rows of classes that both
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

    state, notes = restore_groups(
        file, model_state, declared, file_groups, model.recipe.num_queries
    )
    report.add(notes)
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
    report.add(keep_answering_group(state, declared, file_recipe, model.recipe))
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


def restore_groups(
    file: Checkpoint,
    model: Mapping[str, Tensor],
    declared: Mapping[str, ParameterAxes],
    file_groups: int | None,
    num_queries: int,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file with an axis of groups where the ``model`` has one.

    Checkpoints of others have flat query tables [K*N,C], which become [K,N,C]. ``declared`` is what
    the model's modules declare (`declared_axes`). ``num_queries`` is N if the file does not say it.
    If the file has other tensors for each group, such as proposal heads, K is their number.

    The second value is a line if nothing in the file says that its rows are several groups.
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
    notes: list[str] = []
    for name in flat:
        rows = count_flat_rows(state[name], declared[name])
        if rows is not None and len(recorded) == 1:
            num_groups = recorded.pop()
            _expect_whole_groups(name, rows, num_groups, file.where)
            break
        if rows is not None:
            num_groups = count_groups(file, rows, file_groups, num_queries)
            if file_groups is None:
                notes = unstated_groups(file, rows, num_groups)
            break
    for name in flat:
        state[name] = unflatten_groups(state[name], declared[name], num_groups)
    return state, notes


def keep_answering_group(
    state: dict[str, Tensor],
    declared: Mapping[str, ParameterAxes],
    file_recipe: Metadata,
    recipe: Recipe,
) -> list[str]:
    """Let the group that answers in the file answer in a model that has too few groups for it.

    It may be another one than group 0, for example in a file of `groupdetr groups --best`. Return a
    line if groups of ``state`` were exchanged. ``recipe`` is that of the model, and ``declared`` is
    what its modules declare (`declared_axes`).
    """
    theirs, ours = file_recipe.get("inference_group"), recipe.inference_group
    # The metadata of a file may hold anything.
    if type(theirs) is not int or ours is None or theirs < recipe.num_groups:
        return []
    if not exchange_groups(state, declared, theirs, ours):
        return []
    return [f"group {theirs} answers in the file: loaded as group {ours}, which answers here"]


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


def unstated_groups(file: Checkpoint, rows: int, num_groups: int) -> list[str]:
    """Return a line if only the model's N says that query ``rows`` are several groups.

    They may as well be those of one larger group.
    """
    is_stated = file.positive_int("num_queries") or file.positive_int("group_detr")
    if num_groups == 1 or is_stated:
        return []
    return [
        f"groups: the file does not say how many groups its {rows} query rows are: read as "
        f"{num_groups} groups of {rows // num_groups}, as many queries as the model has. If they "
        f"are one group of {rows}: groupdetr import {quote(file.where)} --file-groups 1 "
        "(Python: file_groups=1)"
    ]


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
