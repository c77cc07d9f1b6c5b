"""Writes the weights of a detector under the names of others: of transformers, and of the authors.

The tables are those that read such weights. What the code of others cannot compute is refused by
name, because their detector would have other answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from groupdetr.checkpoints.layout import Description, Layout
from groupdetr.checkpoints.native import unique_state
from groupdetr.detectors.conditional_detr import ConditionalDETR
from groupdetr.detectors.dab_deformable_detr import DABDeformableDETR, TwoStageDABDeformableDETR
from groupdetr.detectors.dab_detr import DABDETR
from groupdetr.detectors.dino import DINO, ViTDINO
from groupdetr.detectors.dn_detr import DNDETR
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.registry import RESNET50, SWIN_LARGE, VOVNET99
from groupdetr.modeling.backbones.timm_backbone import TimmNetwork
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.parameter_axes import Axis, declared_axes
from groupdetr.weights.detrex_dino import DETREX_DINO
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_mask2former import HUGGING_FACE_MASK2FORMER
from groupdetr.weights.official_conditional_detr import OFFICIAL
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO
from groupdetr.weights.official_mask2former import OFFICIAL_MASK2FORMER
from groupdetr.weights.official_petr import OFFICIAL_PETR

WeightsFormat = Literal["transformers", "official"]
NETWORK = "backbone.network."  # how the names of a backbone's tensors begin
TIMM_MODULE = f"{NETWORK}model."  # of a network of timm, which is inside of a module


@dataclass(frozen=True)
class Target:
    """The code of others that a detector is written for."""

    layout: Layout
    # The recipe whose defaults this code has, and the fields that no option of it changes.
    published: Recipe
    fixed: tuple[str, ...]
    # The backbones that it builds; None for any network of timm
    backbones: tuple[str, ...] | None

    @property
    def title(self) -> str:
        """Whose code it is, such as: the authors' DAB-DETR."""
        return self.layout.title


# What the image's position embedding and the decoder compute, and no tensor shows
POSITION = ("temperature", "offset")
CONDITIONAL = (*POSITION, "eps", "strides")
DETREX = DINO(shared_heads=False, temperature=10000.0, offset=-0.5)

# The class of a recipe -> the code for it. A recipe is written as the first of its base classes
# that is listed here, or refused with the reason.
TARGETS: dict[str, dict[type[Recipe], Target | str]] = {
    "transformers": {
        ConditionalDETR: Target(HUGGING_FACE, ConditionalDETR(), (*POSITION, "eps"), None),
        # Its inverse sigmoid is clamped at another value, which `notes` says.
        DABDETR: Target(HUGGING_FACE_DAB, DABDETR(), ("offset",), None),
        Mask2Former: Target(
            HUGGING_FACE_MASK2FORMER,
            Mask2Former(),
            (*POSITION, "num_levels", "num_points", "strides"),
            None,
        ),
        DNDETR: "transformers has no DN-DETR",
        DABDeformableDETR: "in transformers' Deformable DETR, the positions of the queries are "
        "learned; here, they follow from the box in every layer (DAB-Deformable-DETR)",
        DINO: "transformers has no DINO",
        PETR: "transformers has no PETR",
    },
    "official": {
        ConditionalDETR: Target(OFFICIAL, ConditionalDETR(), CONDITIONAL, (RESNET50,)),
        DABDETR: Target(OFFICIAL_DAB, DABDETR(), ("offset", "eps", "strides"), (RESNET50,)),
        DNDETR: Target(OFFICIAL_DN, DNDETR(), ("offset", "eps", "strides"), (RESNET50,)),
        DABDeformableDETR: Target(
            OFFICIAL_DAB_DEFORMABLE, DABDeformableDETR(), CONDITIONAL, (RESNET50,)
        ),
        DINO: Target(
            OFFICIAL_DINO,
            DINO(),
            ("offset", "eps", "strides", "shared_heads"),
            (RESNET50, SWIN_LARGE),
        ),
        Mask2Former: Target(
            OFFICIAL_MASK2FORMER, Mask2Former(), (*POSITION, "strides"), (RESNET50,)
        ),
        PETR: Target(OFFICIAL_PETR, PETR(), ("eps", "strides"), (VOVNET99,)),
        TwoStageDABDeformableDETR: "the authors never ran the second stage of their "
        "DAB-Deformable-DETR, and detrex's is not known to this library",
        ViTDINO: "the code of Group DETR v2 was not published",
    },
}
# DINO of detrex differs in fields that the authors' code has fixed.
DETREX_TARGET = Target(
    DETREX_DINO,
    DETREX,
    (*CONDITIONAL, "shared_heads", "num_levels", "decoder_layers"),
    (RESNET50,),
)


def find_target(recipe: Recipe, format: WeightsFormat, where: str) -> Target:
    """Return the code that a detector is written for. ``where`` is its file, for errors.

    `UsageError` if there is none that computes what the detector computes.
    """
    targets = TARGETS[format]
    found = next((targets[base] for base in type(recipe).__mro__ if base in targets), None)
    if found is None or isinstance(found, str):
        reason = found or f"no published code is known for {type(recipe).__name__}"
        raise UsageError(
            f"{recipe.preset or type(recipe).__name__} cannot be written in the format {format}: "
            f"{reason}",
            where,
            "choose another --format; --help lists them",
        )
    if isinstance(recipe, DINO) and not _differences(recipe, DETREX_TARGET):
        found = DETREX_TARGET
    _expect_same(recipe, found, where)
    return found


def _differences(recipe: Recipe, target: Target) -> list[str]:
    """Return the fields of a recipe that differ from what the code of others has fixed."""
    is_dilated = getattr(recipe, "dilated", False)
    differing = []
    for name in target.fixed:
        # The dilated form (DC5) has its map at stride 16, whatever the field says.
        if name == "strides" and is_dilated:
            continue
        if getattr(recipe, name) != getattr(target.published, name):
            differing.append(name)
    return differing


def _expect_same(recipe: Recipe, target: Target, where: str) -> None:
    """Raise `UsageError` unless the code of others computes what the detector computes."""
    if target.backbones is not None and recipe.backbone not in target.backbones:
        raise UsageError(
            f"{target.title} has no backbone {recipe.backbone}, only "
            f"{' and '.join(target.backbones)}",
            where,
            f"train one that fits: groupdetr train DATA --backbone {target.backbones[0]}",
        )
    for name in _differences(recipe, target):
        ours, theirs = getattr(recipe, name), getattr(target.published, name)
        raise UsageError(
            f"{target.title} has {name} {_text(theirs)}, and this detector was trained with "
            f"{_text(ours)}: its answers would be others",
            where,
            f"train one that fits: groupdetr train DATA --set {name}={_text(theirs)}",
        )
    temperature = getattr(recipe, "temperature", 0.0)
    if target.layout is HUGGING_FACE_DAB and temperature != int(temperature):
        raise UsageError(
            f"{target.title} has a whole number as temperature, and this detector {temperature}",
            where,
            "choose another --format; --help lists them",
        )
    if recipe.inference_group is None and recipe.num_groups > 1:
        raise UsageError(
            "all groups of this detector answer together, and the code of others has one group",
            where,
            "train one that fits: groupdetr train DATA --set inference_group=0",
        )


def _text(value: object) -> str:
    """Return the value of a field as --set takes it."""
    if isinstance(value, tuple):
        return f"[{','.join(str(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def notes(recipe: Recipe, target: Target) -> list[str]:
    """Return what differs in the code of others, although their answers are nearly the same."""
    lines = []
    if target.layout is HUGGING_FACE_DAB and recipe.eps != 1e-5:  # type: ignore[attr-defined]
        lines.append(
            "transformers clamps the inverse sigmoid of boxes at 1e-05, this detector at "
            f"{recipe.eps:g}: "  # type: ignore[attr-defined]
            "boxes with a coordinate or a size below that differ a little"
        )
    return lines


def describe(
    recipe: Recipe, num_groups: int, categories: Sequence[tuple[int | str, str]], imgsz: int
) -> Description:
    """Return what the metadata of a checkpoint of a detector say, which has ``num_groups``."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return Description({**values, "num_groups": num_groups}, categories, imgsz)


def one_group_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the tensors of a detector with only the group that answers, without its axis.

    Tensors that modules share have all of their names.
    """
    state = dict(model.state_dict())
    group = model.recipe.inference_group or 0
    for name, axes in declared_axes(model).items():
        axis = axes.index(Axis.GROUP)
        if axis is not None and name in state:
            state[name] = state[name].select(axis, group)
    return state


def all_groups_state(model: DetectionTransformer, title: str, where: str) -> dict[str, Tensor]:
    """Return the tensors of a detector with the rows of all groups, one group after the other.

    `UsageError` if a group has more than rows of queries, such as proposal heads of its own.
    """
    state = dict(model.state_dict())
    for name, axes in declared_axes(model).items():
        axis = axes.index(Axis.GROUP)
        if axis is None or name not in state:
            continue
        if axes.index(Axis.QUERY) != axis + 1:
            raise UsageError(
                f"{title} cannot have all groups: {name} of every group is another, and a file of "
                "theirs has one",
                where,
                "leave out --all-groups; the group that answers is written then",
            )
        state[name] = state[name].flatten(axis, axis + 1)
    return state


def their_state(state: dict[str, Tensor], model: nn.Module, target: Target) -> dict[str, Tensor]:
    """Return tensors of ours under the names of others, as contiguous tensors of the CPU.

    ``state`` has no axis of groups, and ``model`` is the detector that it is of.
    """
    theirs = target.layout.revert(without_timm_module(state, model))
    return {name: value.detach().cpu().contiguous() for name, value in theirs.items()}


def without_timm_module(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return tensors without the module that contains a network of timm in their names.

    The code of others has its backbone without such a module.
    """
    if not isinstance(model.get_submodule("backbone.network"), TimmNetwork):
        return dict(state)
    renamed = {}
    for name, value in state.items():
        if name.startswith(TIMM_MODULE):
            name = NETWORK + name.removeprefix(TIMM_MODULE)
        renamed[name] = value
    return renamed


def unequal_tensors(
    state: Mapping[str, Tensor],
    model: DetectionTransformer,
    target: Target,
    converted: Mapping[str, Tensor],
) -> list[str]:
    """Return the names of tensors that are not the same after they were written and read.

    ``state`` is what was written, and ``converted`` what was read of it, under our names. Counters
    of batch norms are not written, and neither is what `Layout.undo_complete` leaves out: the row
    "no object" of the label embedding, which DINO never uses and detrex does not have.
    """
    unequal = []
    layout = target.layout
    state = layout.complete(layout.undo_complete(dict(state)))
    first_names = without_timm_module(unique_state(model), model)
    for name, value in without_timm_module(state, model).items():
        if name not in first_names or name.endswith("num_batches_tracked"):
            continue
        if name not in converted or not torch.equal(converted[name], value.cpu()):
            unequal.append(name)
    return unequal
