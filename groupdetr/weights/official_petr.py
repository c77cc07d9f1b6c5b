"""Checkpoints of PETR and PETRv2 with VoVNetV2-99.

The authors' files (github.com/megvii-research/PETR) have 854 and 966 tensors. mmcv writes them,
with the tensors under ``state_dict``. mmdet3d 1.x has a PETR with the same names and another
encoding of boxes, with the length before the width. If one is read as the other, only the sizes of
boxes are wrong, which is easily missed. Only the metadata distinguishes them: mmcv writes its
version there, and mmengine, on which mmdet3d 1.x is built, writes its own.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import (
    Description,
    IdAndName,
    Layout,
    Metadata,
    Names,
    RecipeFields,
    with_prefixes,
)
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.detectors.petr import PETR, PETRv2
from groupdetr.modeling.backbones.vovnet_names import VOVNET_NAMES
from groupdetr.ops.boxes3d import LENGTH_FIRST
from groupdetr.weights.detrex_dino import OWN_FIELDS
from groupdetr.weights.detrex_dino import describe as describe_fields
from groupdetr.weights.metadata_fields import CATEGORIES, named_fields

# Modules that are 1x1 convolutions in their code and linear layers in ours.
LINEAR = ("encoder.point_embed.", "encoder.view_embed.", "encoder.position_embedding.")


def two_layers(theirs: str, ours: str) -> Names:
    """Return the table of an MLP of two layers. Their indices count the activation, too."""
    return {f"{theirs}.0.*": f"{ours}.layers.0.*", f"{theirs}.2.*": f"{ours}.layers.1.*"}


NECK: Names = {"lateral_convs.#.conv.*": "lateral.#.*", "fpn_convs.0.conv.*": "smooth.*"}

INPUTS: Names = {
    "attn.in_proj_*": ("query_proj.*", "key_proj.*", "value_proj.*"),
    "attn.out_proj.*": "output_proj.*",
}
# One decoder layer.
LAYER: Names = {
    **with_prefixes(INPUTS, "attentions.0.", "self_attention."),
    **with_prefixes(INPUTS, "attentions.1.", "cross_attention."),
    "ffns.0.layers.0.0.*": "feed_forward.expand.*",
    "ffns.0.layers.1.*": "feed_forward.contract.*",
    "norms.0.*": "norm1.*",
    "norms.1.*": "norm2.*",
    "norms.2.*": "norm3.*",
}

# The two attentions of a decoder layer in older files of mmcv.
OLDER_LAYER: Names = {
    **with_prefixes(INPUTS, "self_attn.", "self_attention."),
    **with_prefixes(INPUTS, "multihead_attn.", "cross_attention."),
}

# The box regression of PETR is an MLP. That of PETRv2 has a shared MLP and an MLP for each part of
# the box. Their indices count activations and dropout, too.
REGRESS: Names = {
    "0.*": "layers.0.*",
    "2.*": "layers.1.*",
    "4.*": "layers.2.*",
    "reg_branch.0.*": "shared.layers.0.*",
    "reg_branch.3.*": "shared.layers.1.*",
    "task_heads.#.0.*": "branches.#.layers.0.*",
    "task_heads.#.2.*": "branches.#.layers.1.*",
}

HEAD: Names = {
    "code_weights": (),
    "input_proj.*": "encoder.projection.*",
    **two_layers("position_encoder", "encoder.point_embed"),
    **two_layers("adapt_pos3d", "encoder.view_embed"),
    "fpe.conv_reduce.*": "encoder.position_embedding.gate.layers.0.*",
    "fpe.conv_expand.*": "encoder.position_embedding.gate.layers.1.*",
    "reference_points.weight": "queries.points",
    **two_layers("query_embedding", "queries.position_embedding"),
    **with_prefixes(LAYER, "transformer.decoder.layers.#.", "decoder.layers.#."),
    "transformer.decoder.post_norm.*": "decoder.norm.*",
    "cls_branches.#.6.*": "decoder.heads.#.classify.*",
    "cls_branches.#.#.*": "decoder.heads.#.cls_branch.#.*",
    **with_prefixes(REGRESS, "reg_branches.#.", "decoder.heads.#.regress."),
}

NAMES: Names = {
    "*.num_batches_tracked": (),
    **with_prefixes(VOVNET_NAMES, "img_backbone.", "backbone.network."),
    **with_prefixes(NECK, "img_neck.", "encoder.neck."),
    **with_prefixes(HEAD, "pts_bbox_head.", ""),
}
OLDER_NAMES: Names = with_prefixes(
    {
        **with_prefixes(OLDER_LAYER, "transformer.decoder.layers.#.", "decoder.layers.#."),
        "transformer.decoder.norm.*": "decoder.norm.*",
    },
    "pts_bbox_head.",
    "",
)


def preset(file: Checkpoint) -> str:
    """Return "petrv2-v99" for a file that has the gate of PETRv2's position embedding."""
    is_v2 = "encoder.position_embedding.gate.layers.0.weight" in file.state
    return "petrv2-v99" if is_v2 else "petr-v99"


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields in a file of this library; the authors' have none."""
    return named_fields(OWN_FIELDS, file.metadata)


def categories(metadata: Metadata) -> list[IdAndName]:
    """Return the classes of nuScenes, in the order of all their configurations.

    A file of this library may have others.
    """
    if CATEGORIES in metadata:
        return [(id, name) for id, name in metadata[CATEGORIES]]
    return list(enumerate(CLASSES))


def to_linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the weights of their 1x1 convolutions of positions into those of linear layers."""
    converted = dict(state)
    for name, value in state.items():
        if name.startswith(LINEAR) and value.ndim == 4:
            converted[name] = value.flatten(1)
    return converted


def to_convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn the weights of linear layers of positions into those of their 1x1 convolutions."""
    converted = dict(state)
    for name, value in state.items():
        if name.startswith(LINEAR) and value.ndim == 2:
            converted[name] = value[..., None, None]
    return converted


def with_code_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the weights of the ten numbers of a box in the loss, which their head has.

    The last two are the velocity's.
    """
    is_v2 = "pts_bbox_head.fpe.conv_reduce.weight" in theirs
    velocity = PETRv2.velocity if is_v2 else PETR.velocity
    return theirs | {"pts_bbox_head.code_weights": torch.tensor([1.0] * 8 + [velocity] * 2)}


def describe(description: Description) -> dict[str, Any]:
    """Return the entry that the metadata of mmcv have, and those of this library."""
    return {"mmcv_version": "1.4.0", **describe_fields(description)}


def to_width_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert an mmdet3d file: as `to_linear`, and reorder the encoded boxes as the authors do."""
    last_layer = re.compile(r"decoder\.heads\.\d+\.regress\.layers\.2\.(weight|bias)")
    converted = to_linear(state)
    for name, value in state.items():
        if last_layer.fullmatch(name):
            converted[name] = value[LENGTH_FIRST]
    return converted


def is_mmcv(metadata: Metadata) -> bool:
    return "mmcv_version" in metadata and "mmengine_version" not in metadata


def is_mmengine(metadata: Metadata) -> bool:
    return "mmengine_version" in metadata


OFFICIAL_PETR = Layout(
    title="the authors' PETR",
    preset=preset,
    signature=(
        "pts_bbox_head.reference_points.weight",
        "pts_bbox_head.position_encoder.0.weight",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    complete=to_linear,
    matches_metadata=is_mmcv,
    also_read=OLDER_NAMES,
    undo_complete=to_convolutions,
    add_dropped=with_code_weights,
    describe=describe,
)
MMDET3D_PETR = Layout(
    title="mmdet3d's PETR",
    preset=preset,
    # mmdet3d has no PETRv2, so the regression has the names of PETR.
    signature=(*OFFICIAL_PETR.signature, "pts_bbox_head.reg_branches.0.4.weight"),
    names=NAMES,
    options=options,
    categories=categories,
    complete=to_width_first,
    matches_metadata=is_mmengine,
    also_read=OLDER_NAMES,
)
