"""Writes the weights of a detector under the names of others: of transformers, and of the authors.

The tables are those that read such weights. What the code of others cannot compute is refused by
name, because their detector would have other answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from groupdetr.detectors.lw_detr import LWDETR
from groupdetr.detectors.mask2former import Mask2Former
from groupdetr.detectors.petr import PETR
from groupdetr.detectors.recipe import Recipe
from groupdetr.detectors.rf_detr import RFDETR
from groupdetr.detectors.rf_detr_seg import RFDETRSeg
from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.registry import (
    LW_DETR_VIT,
    RESNET50,
    SWIN_LARGE,
    VOVNET99,
    WINDOWED_DINOV2,
)
from groupdetr.modeling.backbones.timm_network import TimmNetwork
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.parameter_axes import Axis, declared_axes
from groupdetr.weights.adapt import exchange_groups
from groupdetr.weights.detrex_dino import DETREX_DINO
from groupdetr.weights.huggingface_conditional_detr import HUGGING_FACE
from groupdetr.weights.huggingface_dab_detr import HUGGING_FACE_DAB
from groupdetr.weights.huggingface_lw_detr import HUGGING_FACE_LW_DETR
from groupdetr.weights.huggingface_mask2former import HUGGING_FACE_MASK2FORMER
from groupdetr.weights.huggingface_rf_detr import HUGGING_FACE_RF_DETR, HUGGING_FACE_RF_DETR_SEG
from groupdetr.weights.official_conditional_detr import OFFICIAL
from groupdetr.weights.official_dab_detr import OFFICIAL_DAB, OFFICIAL_DN
from groupdetr.weights.official_deformable import OFFICIAL_DAB_DEFORMABLE, OFFICIAL_DINO
from groupdetr.weights.official_lw_detr import ENCODERS, OFFICIAL_LW_DETR
from groupdetr.weights.official_mask2former import OFFICIAL_MASK2FORMER
from groupdetr.weights.official_petr import OFFICIAL_PETR
from groupdetr.weights.roboflow_rf_detr import (
    ENCODERS_OF_WIDTH,
    ROBOFLOW_RF_DETR,
    ROBOFLOW_RF_DETR_SEG,
    global_blocks,
    has_unused_row,
)

WeightsFormat = Literal["transformers", "official"]
UNUSED_LOGIT = -100.0  # of a row of class heads that is no class
USUAL_GROUPS = 13  # that the code of LW-DETR and RF-DETR builds unless it is told another number
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
    # Returns what else it cannot compute, "" if there is nothing
    difference: Callable[[Recipe], str] = lambda _: ""
    # Whether a file or folder of it may have all groups, because its code trains them
    has_groups: bool = False

    @property
    def title(self) -> str:
        """Whose code it is, such as: the authors' DAB-DETR."""
        return self.layout.title


# What the image's position embedding and the decoder compute, and no tensor shows
POSITION = ("temperature", "offset")
CONDITIONAL = (*POSITION, "eps", "strides")
UPDATE = "reference_update"  # of boxes, from layer to layer
DETREX = DINO(shared_heads=False, temperature=10000.0, offset=-0.5)


def dab_deformable_difference(recipe: Recipe) -> str:
    """Return what the authors' DAB-Deformable-DETR cannot compute of a detector.

    Its decoder has no norm behind the layers. Without it, both ways to refine boxes have the same
    answers, and differ in their gradients.
    """
    assert isinstance(recipe, DABDeformableDETR)
    if recipe.reference_update == "keep_reference":
        return "every layer refines the boxes, and here all layers have the same reference"
    return ""


def lw_detr_difference(recipe: Recipe) -> str:
    """Return what the authors' LW-DETR cannot compute of a detector."""
    assert isinstance(recipe, LWDETR)
    if recipe.vit_width not in ENCODERS:
        widths = ", ".join(str(width) for width in ENCODERS)
        return f"it has backbones of {widths} channels, and this one has {recipe.vit_width}"
    return ""


def rf_detr_difference(recipe: Recipe) -> str:
    """Return what Roboflow's and transformers' RF-DETR cannot compute of a detector."""
    assert isinstance(recipe, RFDETR)
    expected = global_blocks([block + 1 for block in recipe.map_blocks], recipe.vit_depth)
    if recipe.global_blocks != expected:
        return (
            f"its blocks {_text(expected)} attend globally, and those of this detector "
            f"{_text(recipe.global_blocks)}"
        )
    return ""


def roboflow_difference(recipe: Recipe) -> str:
    """Return what Roboflow's RF-DETR cannot compute of a detector."""
    assert isinstance(recipe, RFDETR)
    if recipe.vit_width not in ENCODERS_OF_WIDTH or recipe.vit_heads != recipe.vit_width // 64:
        widths = ", ".join(str(width) for width in ENCODERS_OF_WIDTH)
        return (
            f"it has backbones of {widths} channels with 64 of each head, and this one has "
            f"{recipe.vit_width} channels and {recipe.vit_heads} heads"
        )
    return rf_detr_difference(recipe)


# The class of a recipe -> the code for it. A recipe is written as the first of its base classes
# that is listed here, or refused with the reason.
TARGETS: dict[str, dict[type[Recipe], Target | str]] = {
    "transformers": {
        ConditionalDETR: Target(HUGGING_FACE, ConditionalDETR(), (*POSITION, "eps"), None),
        # Its inverse sigmoid is clamped at another value, which `notes` says.
        DABDETR: Target(HUGGING_FACE_DAB, DABDETR(), ("offset", UPDATE), None),
        Mask2Former: Target(
            HUGGING_FACE_MASK2FORMER,
            Mask2Former(),
            (*POSITION, "num_levels", "num_points", "strides"),
            None,
        ),
        LWDETR: Target(HUGGING_FACE_LW_DETR, LWDETR(), (), (LW_DETR_VIT,), has_groups=True),
        RFDETR: Target(
            HUGGING_FACE_RF_DETR,
            RFDETR(),
            ("projector_levels",),
            (WINDOWED_DINOV2,),
            rf_detr_difference,
            has_groups=True,
        ),
        RFDETRSeg: Target(
            HUGGING_FACE_RF_DETR_SEG,
            RFDETR(),
            ("projector_levels",),
            (WINDOWED_DINOV2,),
            rf_detr_difference,
            has_groups=True,
        ),
        DNDETR: "transformers has no DN-DETR",
        DABDeformableDETR: "in transformers' Deformable DETR, the positions of the queries are "
        "learned; here, they follow from the box in every layer (DAB-Deformable-DETR)",
        DINO: "transformers has no DINO",
        PETR: "transformers has no PETR",
    },
    "official": {
        ConditionalDETR: Target(OFFICIAL, ConditionalDETR(), CONDITIONAL, (RESNET50,)),
        DABDETR: Target(OFFICIAL_DAB, DABDETR(), ("offset", "eps", "strides", UPDATE), (RESNET50,)),
        DNDETR: Target(OFFICIAL_DN, DNDETR(), ("offset", "eps", "strides", UPDATE), (RESNET50,)),
        DABDeformableDETR: Target(
            OFFICIAL_DAB_DEFORMABLE,
            DABDeformableDETR(),
            CONDITIONAL,
            (RESNET50,),
            dab_deformable_difference,
        ),
        DINO: Target(
            OFFICIAL_DINO,
            DINO(),
            ("offset", "eps", "strides", "shared_heads", UPDATE),
            (RESNET50, SWIN_LARGE),
        ),
        Mask2Former: Target(
            OFFICIAL_MASK2FORMER, Mask2Former(), (*POSITION, "strides"), (RESNET50,)
        ),
        PETR: Target(OFFICIAL_PETR, PETR(), ("eps", "strides"), (VOVNET99,)),
        LWDETR: Target(
            OFFICIAL_LW_DETR,
            LWDETR(),
            ("strides", "vit_heads", "num_windows", "position_grid"),
            (LW_DETR_VIT,),
            lw_detr_difference,
            has_groups=True,
        ),
        RFDETR: Target(
            ROBOFLOW_RF_DETR,
            RFDETR(),
            ("vit_depth",),
            (WINDOWED_DINOV2,),
            roboflow_difference,
            has_groups=True,
        ),
        RFDETRSeg: Target(
            ROBOFLOW_RF_DETR_SEG,
            RFDETR(),
            ("vit_depth",),
            (WINDOWED_DINOV2,),
            roboflow_difference,
            has_groups=True,
        ),
        TwoStageDABDeformableDETR: "the authors never ran the second stage of their "
        "DAB-Deformable-DETR, and detrex's is not known to this library",
        ViTDINO: "the code of Group DETR v2 was not published",
    },
}
# DINO of detrex differs in fields that the authors' code has fixed.
DETREX_TARGET = Target(
    DETREX_DINO,
    DETREX,
    (*CONDITIONAL, "shared_heads", "num_levels", "decoder_layers", UPDATE),
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
    difference = target.difference(recipe)
    if difference:
        raise UsageError(
            f"{target.title} cannot compute this detector: {difference}",
            where,
            "choose another --format; --help lists them",
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


def notes_of_groups(recipe: Recipe, target: Target, num_groups: int) -> list[str]:
    """Return how the code of others is told that a file has another number of groups than usual."""
    if not target.has_groups or num_groups == USUAL_GROUPS:
        return []
    line = (
        f"build the model of {target.title} with the same number of groups, group_detr={num_groups}"
    )
    if recipe.num_groups != num_groups:
        line += f"; --all-groups writes all {recipe.num_groups}"
    return [line]


def describe(
    recipe: Recipe, num_groups: int, categories: Sequence[tuple[int | str, str]], imgsz: int
) -> Description:
    """Return what the metadata of a checkpoint of a detector say, which has ``num_groups``."""
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return Description({**values, "num_groups": num_groups}, categories, imgsz)


def one_group_state(model: DetectionTransformer, layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of a detector with only the group that answers.

    They have no axis of groups, except those of which a file of this layout has one for every
    group. Tensors that modules share have all of their names.
    """
    state = dict(model.state_dict())
    group = model.recipe.inference_group or 0
    for name, axes in declared_axes(model).items():
        axis = axes.index(Axis.GROUP)
        if axis is None or name not in state:
            continue
        if layout.has_axis_of_groups(name):
            state[name] = state[name].narrow(axis, group, 1)
        else:
            state[name] = state[name].select(axis, group)
    return state


def all_groups_state(model: DetectionTransformer, layout: Layout, where: str) -> dict[str, Tensor]:
    """Return the tensors of a detector with all groups, as a file of this layout has them.

    The group that answers is the first one, which answers in the code of others. A table of queries
    has the rows of one group after those of the other. Tensors of which the file has one for every
    group have the axis of groups. `UsageError` if there are others, such as proposal heads, of
    which the file has one.
    """
    state = dict(model.state_dict())
    exchange_groups(state, declared_axes(model), 0, model.recipe.inference_group or 0)
    for name, axes in declared_axes(model).items():
        axis = axes.index(Axis.GROUP)
        if axis is None or name not in state or layout.has_axis_of_groups(name):
            continue
        if axes.index(Axis.QUERY) != axis + 1:
            raise UsageError(
                f"{layout.title} cannot have all groups: {name} of every group is another, and a "
                "file of theirs has one",
                where,
                "leave out --all-groups; the group that answers is written then",
            )
        state[name] = state[name].flatten(axis, axis + 1)
    return state


def with_unused_class(
    state: Mapping[str, Tensor],
    model: DetectionTransformer,
    layout: Layout,
    categories: Sequence[tuple[int | str, str]],
) -> dict[str, Tensor]:
    """Return the tensors with one more row of class heads, if the layout has it and they lack it.

    The code of others takes the last row for no class. The logit of the new one is so low that
    neither a proposal nor a detection has this class.
    """
    classes = list(categories)
    if not layout.has_unused_class or has_unused_row(classes):
        return dict(state)
    extended = dict(state)
    for name, axes in declared_axes(model).items():
        axis = axes.index(Axis.CLASS)
        if axis is not None and name in state:
            row = torch.zeros_like(state[name].narrow(axis, 0, 1))
            if name.endswith("bias"):
                row = row + UNUSED_LOGIT
            extended[name] = torch.cat([state[name], row], dim=axis)
    return extended


def their_state(state: dict[str, Tensor], model: nn.Module, target: Target) -> dict[str, Tensor]:
    """Return tensors of ours under the names of others, as contiguous tensors of the CPU.

    ``state`` is that of `one_group_state` or `all_groups_state`, and ``model`` is the detector.
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
