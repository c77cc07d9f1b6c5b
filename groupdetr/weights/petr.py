"""Checkpoints of PETR and PETRv2 with VoVNetV2-99: the authors' (github.com/megvii-research/PETR), 854 and 966 tensors.

They are written by mmcv, tensors under ``state_dict``. mmdet3d 1.x has a PETR with the same names and another code of
boxes, the length before the width: one read as the other is wrong about sizes alone, which is easily missed. Only what
stands beside the tensors tells them apart: mmcv writes its version there, and mmengine, on which 1.x is built, its own.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from groupdetr.checkpoints.layout import Category, Facts, Layout, Names, within
from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.modeling.backbones.vovnet_names import VOVNET
from groupdetr.ops.boxes3d import LENGTH_FIRST

NUSCENES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
LINEAR = ("encoder.points.", "encoder.views.", "encoder.place.")


def two_layers(theirs: str, ours: str) -> Names:
    """Of an MLP with what lies between its layers counted."""
    return {f"{theirs}.0.*": f"{ours}.layers.0.*", f"{theirs}.2.*": f"{ours}.layers.1.*"}


NECK: Names = {"lateral_convs.#.conv.*": "lateral.#.*", "fpn_convs.0.conv.*": "smooth.*"}

INPUTS: Names = {"attn.in_proj_*": ("query.*", "key.*", "value.*"), "attn.out_proj.*": "output.*"}
LAYER: Names = {
    **within(INPUTS, "attentions.0.", "self_attention."),
    **within(INPUTS, "attentions.1.", "cross_attention."),
    **within(INPUTS, "self_attn.", "self_attention."),  # as older files of mmcv call the two
    **within(INPUTS, "multihead_attn.", "cross_attention."),
    "ffns.0.layers.0.0.*": "feed_forward.expand.*",
    "ffns.0.layers.1.*": "feed_forward.contract.*",
    "norms.0.*": "norm1.*",
    "norms.1.*": "norm2.*",
    "norms.2.*": "norm3.*",
}  # of the decoder

REGRESS: Names = {
    **{f"{theirs}.*": f"layers.{ours}.*" for ours, theirs in enumerate((0, 2, 4))},
    **{f"reg_branch.{theirs}.*": f"shared.layers.{ours}.*" for ours, theirs in enumerate((0, 3))},
    **{
        f"task_heads.#.{theirs}.*": f"parts.#.layers.{ours}.*" for ours, theirs in enumerate((0, 2))
    },
}  # PETR's, and PETRv2's

HEAD: Names = {
    "code_weights": (),
    "input_proj.*": "encoder.projection.*",
    **two_layers("position_encoder", "encoder.points"),
    **two_layers("adapt_pos3d", "encoder.views"),
    "fpe.conv_reduce.*": "encoder.place.gate.layers.0.*",
    "fpe.conv_expand.*": "encoder.place.gate.layers.1.*",
    "reference_points.weight": "queries.points",
    **two_layers("query_embedding", "queries.place"),
    **within(LAYER, "transformer.decoder.layers.#.", "decoder.layers.#."),
    "transformer.decoder.post_norm.*": "decoder.norm.*",
    "transformer.decoder.norm.*": "decoder.norm.*",  # in older files
    "cls_branches.#.6.*": "decoder.heads.#.classify.*",
    "cls_branches.#.#.*": "decoder.heads.#.think.#.*",
    **within(REGRESS, "reg_branches.#.", "decoder.heads.#.regress."),
}

NAMES: Names = {
    "*.num_batches_tracked": (),
    **within(VOVNET, "img_backbone.", "backbone.network."),
    **within(NECK, "img_neck.", "encoder.neck."),
    **within(HEAD, "pts_bbox_head.", ""),
}


def preset(file: Checkpoint) -> str:
    return "petrv2-v99" if "encoder.place.gate.layers.0.weight" in file.state else "petr-v99"


def options(facts: Facts) -> dict[str, Any]:
    """Files say none that matters here."""
    del facts
    return {}


def categories(facts: Facts) -> list[Category]:
    """Rows are the classes of nuScenes, in the order of all its configurations."""
    del facts
    return list(enumerate(NUSCENES))


def as_linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their 1x1 convolutions of positions, as layers that are linear."""
    return {
        name: x.flatten(1) if name.startswith(LINEAR) and x.ndim == 4 else x
        for name, x in state.items()
    }


def width_first(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the rows of the code in the authors' order."""
    last = [
        name
        for name in state
        if re.fullmatch(r"decoder\.heads\.\d+\.regress\.layers\.2\.(weight|bias)", name)
    ]
    return as_linear(state) | {name: state[name][LENGTH_FIRST] for name in last}


OFFICIAL_PETR = Layout(
    "the authors' PETR",
    preset,
    ("pts_bbox_head.reference_points.weight", "pts_bbox_head.position_encoder.0.weight"),
    NAMES,
    options,
    categories,
    as_linear,
    lambda facts: "mmcv_version" in facts and "mmengine_version" not in facts,
)
MMDET3D_PETR = Layout(
    "mmdet3d's PETR",
    preset,
    (*OFFICIAL_PETR.signature, "pts_bbox_head.reg_branches.0.4.weight"),  # it has no PETRv2
    NAMES,
    options,
    categories,
    width_first,
    lambda facts: "mmengine_version" in facts,
)
