"""Loads weights of any known layout into a model.

A file is recognised by the names of its tensors, converted to our names, and fitted to the model.
The report has a line for each step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from groupdetr.checkpoints.layout import Category, Layout, Metadata, RecipeFields, refuse
from groupdetr.checkpoints.native import unique_state
from groupdetr.checkpoints.reading import Checkpoint, open_checkpoint
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.pretrained_layouts import BACKBONES, refuse_backbone_only
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.weights.adapt import (
    CLASS_ROWS,
    check_classes,
    fit_groups,
    query_tables,
    replace_class_head,
    unflatten_groups,
)
from groupdetr.weights.detrex_dino import DETREX_DINO
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_mask2former import HUGGING_FACE_MASK2FORMER
from groupdetr.weights.official_conditional_detr import OFFICIAL
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO
from groupdetr.weights.official_mask2former import OFFICIAL_MASK2FORMER
from groupdetr.weights.official_petr import MMDET3D_PETR, OFFICIAL_PETR

# Recipe fields of the image's position embedding. They differ between published weights of one
# detector and do not follow from the tensors. The model is changed to those of the file.
POSITION_FIELDS = ("temperature", "offset")
# Other recipe fields that do not follow from the tensors. The model keeps its own, and the report
# has a line for each that differs.
OTHER_FIELDS = ("num_heads", "dilated", "eps")


def _native_recipe(metadata: Metadata) -> RecipeFields:
    return dict(metadata.get("recipe", {}))


def _native_categories(metadata: Metadata) -> list[Category]:
    return [(id, name) for id, name in metadata.get("categories", [])]


def _native_preset(file: Checkpoint) -> str:
    recipe = _native_recipe(file.metadata)
    if "preset" not in recipe:
        raise WeightsError(
            "the file does not say which model it is",
            file.where,
            f"name the model: groupdetr import {file.where} --model NAME (Python: preset=NAME)",
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
# A file has the first layout that fits. The names of DN-DETR fit DAB-DETR, too.
LAYOUTS = (
    NATIVE,
    OFFICIAL,
    OFFICIAL_DN,
    OFFICIAL_DAB,
    OFFICIAL_DINO,
    OFFICIAL_DAB_DEFORMABLE,
    DETREX_DINO,
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
) -> LoadReport:
    """Load weights of an official layout, of Hugging Face, of detrex or of this library.

    The numbers of groups K and of queries N may differ between file and model. Rows of the file are
    loaded as far as they reach. ``new_head`` permits other classes: the rows of classes that both
    the file and ``class_names`` (those of the model) have are loaded, the others newly initialised.
    ``file_groups`` is K of a file that has K*N query rows and does not say how many groups they
    are. ``layout`` is the title of the layout of a file that may have several and does not say
    which.

    The temperature and the offset of the image's position embedding become those of the file, in
    the model and in ``model.recipe``. `WeightsError` if the weights do not fit; the model is then
    unchanged.
    """
    file_layout, file = convert_checkpoint(source, layout)
    where = file.where
    file_recipe = file_layout.options(file.metadata)
    report = LoadReport()
    model_state = model.state_dict()
    report.add([f"{where}: read as {file_layout.title}, {len(file.state)} tensors"])
    refuse(file.state.keys() - model_state.keys(), "the model has no", where)
    refuse(unique_state(model).keys() - file.state.keys(), "the file has no", where)
    refuse(
        unequal_shared_parameters(model, file.state),
        "the model's layers share these, which differ in the file:",
        where,
    )

    state = restore_groups(file, file_groups, model.recipe.num_queries)
    file_names = [name for _, name in file_categories(file_layout, file)]
    model_names = class_names or ()
    if new_head:
        report.add(replace_class_head(state, model_state, file_names, model_names))
    else:
        sizes = (count_classes(state), count_classes(model_state))
        check_classes(sizes, file_names, model_names, where)
    # Proposal heads have the model's classes by now.
    report.add(fit_groups(state, model_state))

    refuse(shape_mismatches(state, model_state), "of another shape than the model's:", where)
    not_finite = [name for name, value in state.items() if not value.isfinite().all()]
    refuse(not_finite, "not all finite:", where)

    assert isinstance(model.recipe, Recipe)
    model_recipe = asdict(model.recipe)
    report.recipe_changes = position_changes(model_recipe, file_recipe)
    report.add(describe_differences(model_recipe, file_recipe))
    model.load_state_dict(state, strict=False)
    if report.recipe_changes:
        model.recipe = model.recipe.with_options(**report.recipe_changes)
        new_recipe = model_recipe | report.recipe_changes
        model.encoder.set_position_embedding(new_recipe["temperature"], new_recipe["offset"])
    return report


def position_changes(model: Metadata, file: Metadata) -> dict[str, float]:
    """Return the position embedding fields of the file's recipe that differ from the model's."""
    return {name: file[name] for name in POSITION_FIELDS if _differs(name, model, file)}


def describe_differences(model: Metadata, file: Metadata) -> list[str]:
    """Return a line for each recipe field that differs and does not follow from the tensors."""
    lines = []
    for name in POSITION_FIELDS:
        if _differs(name, model, file):
            theirs, ours = file[name], model[name]
            lines.append(
                f"{name}: {theirs:g} in the file, {ours:g} in the model: set to {theirs:g}"
            )
    for name in OTHER_FIELDS:
        if _differs(name, model, file):
            lines.append(
                f"{name}: {file[name]} in the file, {model[name]} in the model: "
                "the predictions will differ from those of the original"
            )
    return lines


def _differs(name: str, model: Metadata, file: Metadata) -> bool:
    """True if both recipes have the field, with different values."""
    ours, theirs = model.get(name), file.get(name)
    return ours is not None and theirs is not None and ours != theirs


def convert_checkpoint(
    source: str | Path, layout_title: str | None = None
) -> tuple[Layout, Checkpoint]:
    """Return a file's layout, and its tensors under our names.

    ``layout_title`` selects that layout, if the file's names fit it. A file without metadata has
    the only layout that its names fit, if there is only one.
    """
    checkpoint = open_checkpoint(source)
    fitting = [layout for layout in LAYOUTS if layout.fits(checkpoint.state)]
    is_unambiguous = len(fitting) == 1 and not checkpoint.metadata
    for layout in fitting:
        if layout_title is None:
            is_selected = is_unambiguous or layout.matches_metadata(checkpoint.metadata)
        else:
            is_selected = layout.title == layout_title
        if is_selected:
            return layout, layout.convert(checkpoint)

    if fitting:
        titles = " or ".join(layout.title for layout in fitting)
        title = fitting[0].title
        raise WeightsError(
            f"by its names it may be {titles}, and it does not say which",
            checkpoint.where,
            f'name the layout: groupdetr import {checkpoint.where} --layout "{title}" '
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


def file_categories(layout: Layout, file: Checkpoint) -> list[Category]:
    """Return the categories of the rows of the file's class head.

    It is [] if the file has none, or has another number of them than of rows.
    """
    categories = layout.categories(file.metadata)
    return categories if len(categories) == count_classes(file.state) else []


def count_classes(state: Mapping[str, Tensor]) -> int:
    """Return the number of rows of the class head."""
    return next(len(state[name]) for name in state if CLASS_ROWS.fullmatch(name))


def restore_groups(
    file: Checkpoint, file_groups: int | None, num_queries: int
) -> dict[str, Tensor]:
    """Return the tensors of a file with flat query tables [K*N,C] as [K,N,C].

    ``num_queries`` is N if the file does not say it. A file whose tables have an axis of groups is
    returned as it is.
    """
    tables = [file.state[name] for name in query_tables(file.state)]
    flat = [table for table in tables if table.ndim == 2]
    if not flat:
        return dict(file.state)
    num_groups = count_groups(file, len(flat[0]), file_groups, num_queries)
    return unflatten_groups(file.state, num_groups)


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
            f"say how many groups they are: groupdetr import {file.where} --file-groups 1 "
            "(Python: file_groups=1)",
        )
    return groups


def unequal_shared_parameters(
    model: DetectionTransformer, state: Mapping[str, Tensor]
) -> list[str]:
    """Return the names of shared parameters whose values in the state differ from the first name's.

    A parameter that modules of the model share has several names. A file may have all of them, but
    the values must be the same.
    """
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    unequal = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first_name = first_names[id(parameter)]
        if name == first_name or name not in state:
            continue
        if not torch.equal(state[name], state[first_name]):
            unequal.append(name)
    return unequal


def shape_mismatches(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Return a text for each tensor whose shapes differ: its name and its shape in both."""
    return [
        f"{name} {tuple(theirs[name].shape)} for {tuple(ours[name].shape)}"
        for name in theirs
        if theirs[name].shape != ours[name].shape
    ]
