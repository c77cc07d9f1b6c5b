"""Weights of any known layout into a model: recognised by their names, converted, fitted, and every step said."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints.layout import Category, Facts, Layout, refuse
from groupdetr.checkpoints.native import unique_state
from groupdetr.checkpoints.reading import Checkpoint, open_checkpoint
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.pretrained_layouts import BACKBONES, backbone_alone
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.weights.adapt import (
    CLASS_ROWS,
    check_classes,
    fit_groups,
    renew_head,
    tables,
    unfold_groups,
)
from groupdetr.weights.conditional_detr import OFFICIAL
from groupdetr.weights.dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO
from groupdetr.weights.detrex import DETREX_DINO
from groupdetr.weights.huggingface import HUGGING_FACE
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_mask2former import HUGGING_FACE_MASK2FORMER
from groupdetr.weights.mask2former import OFFICIAL_MASK2FORMER
from groupdetr.weights.petr import MMDET3D_PETR, OFFICIAL_PETR


def _recipe(metadata: Facts) -> dict[str, Any]:
    return dict(metadata.get("recipe", {}))


def _categories(metadata: Facts) -> list[Category]:
    return [(id, name) for id, name in metadata.get("categories", [])]


def _preset(file: Checkpoint) -> str:
    if "preset" not in _recipe(file.facts):
        raise WeightsError(
            "the file does not say which model it is",
            file.where,
            "name it: --model NAME (preset=...)",
        )
    return str(_recipe(file.facts)["preset"])


NATIVE = Layout(
    "groupdetr", _preset, ("backbone.network.*", "decoder.*"), {"*": "*"}, _recipe, _categories
)
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
)  # the first that fits: DN-DETR is a DAB-DETR, too


@dataclass
class LoadReport:
    """What was done, a line for each thing."""

    lines: list[str] = field(default_factory=list)

    def say(self, lines: Sequence[str]) -> None:
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
    """Weights of an official layout, of Hugging Face or of ours into ``model``, whose K and N may be others.

    ``new_head`` lets the classes differ; rows of those that file and ``class_names`` (the model's) both name are kept.
    ``file_groups``: K of a file that has K*N query rows and does not say how many groups they are. ``layout``: the
    title of the layout of a file that may have several and does not say which.
    """
    kind, file = translate(source, layout)
    told = kind.options(file.facts)
    report, ours = LoadReport(), model.state_dict()
    report.say([f"{file.where}: read as {kind.title}, {len(file.state)} tensors of ours"])
    refuse(file.state.keys() - ours.keys(), "the model has no", file.where)
    refuse(unique_state(model).keys() - file.state.keys(), "the file has no", file.where)
    refuse(
        _apart(model, file.state),
        "the model's layers share these, which differ in the file:",
        file.where,
    )
    state = unfold(file, file_groups, model.recipe.num_queries)
    named = [name for _, name in categories(kind, file)]
    if new_head:
        report.say(renew_head(state, ours, named, class_names or ()))
    else:
        check_classes((num_classes(state), num_classes(ours)), named, class_names or (), file.where)
    report.say(fit_groups(state, ours))  # of heads that have the model's classes
    refuse(_misshapen(state, ours), "of another shape than the model's:", file.where)
    refuse(
        (name for name in state if not state[name].isfinite().all()), "not all finite:", file.where
    )
    model.load_state_dict(state, strict=False)
    report.say(settle(model, told))
    return report


def settle(model: DetectionTransformer, told: Mapping[str, Any]) -> list[str]:
    """What the weights were trained with and no tensor shows. The image's position embedding differs between published
    weights of one detector: the file's temperature and offset are taken. Other differences are said."""
    lines = []
    for name in ("temperature", "num_heads", "dilated", "eps", "offset"):
        ours, theirs = getattr(model.recipe, name, None), told.get(name)
        if ours is None or theirs is None or ours == theirs:
            continue
        if name in ("temperature", "offset"):
            for part in model.encoder.modules():
                if hasattr(part, name):
                    setattr(part, name, theirs)
            model.recipe = replace(model.recipe, **{name: theirs})
            lines.append(f"{name}: {theirs:g} in the file, {ours:g} in the model: took the file's")
        else:
            lines.append(
                f"{name}: {theirs} in the file, {ours} in the model, which will answer otherwise"
            )
    return lines


def translate(source: str | Path, titled: str | None = None) -> tuple[Layout, Checkpoint]:
    """A file's layout, and its tensors under our names. ``titled``: that layout, if the file's names fit it.

    A file that says nothing of itself is of the one layout that its names fit, if it is one.
    """
    checkpoint = open_checkpoint(source)
    fitting = [layout for layout in LAYOUTS if layout.fits(checkpoint.state)]
    alone = len(fitting) == 1 and not checkpoint.facts
    for layout in fitting:
        if layout.title == titled or (titled is None and (alone or layout.is_of(checkpoint.facts))):
            return layout, layout.convert(checkpoint)
    if fitting:
        raise WeightsError(
            f"by its names it may be {' or '.join(layout.title for layout in fitting)}, and it does not say which",
            checkpoint.where,
            f'name it: layout="{fitting[0].title}" (--layout "{fitting[0].title}")',
        )
    if any(layout.fits(checkpoint.state) for layout in BACKBONES):
        backbone_alone(checkpoint)
    known = ", ".join(layout.title for layout in LAYOUTS)
    refuse(checkpoint.state, f"no layout that is known here ({known}):", checkpoint.where)
    raise WeightsError("there is no tensor", checkpoint.where)


def categories(layout: Layout, file: Checkpoint) -> list[Category]:
    """What the rows of the file's class head stand for; [] if it does not say, or not for as many rows."""
    found = layout.categories(file.facts)
    return found if len(found) == num_classes(file.state) else []


def num_classes(state: Mapping[str, Tensor]) -> int:
    return next(len(state[name]) for name in state if CLASS_ROWS.fullmatch(name))


def unfold(file: Checkpoint, told: int | None, queries: int) -> dict[str, Tensor]:
    """The tensors, flat query tables [K*N,C] as [K,N,C]. ``queries``: the model's N, to go by if the file is silent."""
    flat = [file.state[name] for name in tables(file.state) if file.state[name].ndim == 2]
    return (
        unfold_groups(file.state, count_groups(file, len(flat[0]), told, queries))
        if flat
        else file.state
    )


def count_groups(file: Checkpoint, rows: int, told: int | None, queries: int) -> int:
    """How many groups K*N ``rows`` are: as told, else as the file says, else as many as have the model's N."""
    queries = file.number("num_queries") or queries
    groups = told or file.number("group_detr") or rows // queries
    if groups < 1 or rows % groups or (told is None and rows != groups * queries):
        raise WeightsError(
            f"{rows} query rows are no whole number of groups of {queries}",
            file.where,
            "say how many groups these are: file_groups=1 (--file-groups 1)",
        )
    return groups


def _apart(model: DetectionTransformer, state: Mapping[str, Tensor]) -> list[str]:
    """Second names of parameters that the model shares, where the state has something else than under the first."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = {
        name: first[id(p)]
        for name, p in model.named_parameters(remove_duplicate=False)
        if name in state
    }
    return [
        name
        for name in every
        if name != every[name] and not torch.equal(state[name], state[every[name]])
    ]


def _misshapen(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(theirs[name].shape)} for {tuple(ours[name].shape)}"
        for name in theirs
        if theirs[name].shape != ours[name].shape
    ]
