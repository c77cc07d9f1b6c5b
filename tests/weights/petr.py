"""Weights of PETR and PETRv2 as their authors would name them."""

from __future__ import annotations

from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer

from .conftest import linears
from .deformable import competes


def petr_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """What they would have saved, name by name; K groups of queries are as many rows."""
    state = dict(model.state_dict())
    theirs = {
        f"img_backbone.{name}": value
        for name, value in vovnet_state(state, "backbone.network").items()
    }
    for level in range(2):
        theirs |= linears(
            state, f"img_neck.lateral_convs.{level}.conv", f"encoder.neck.lateral.{level}"
        )
    theirs |= linears(state, "img_neck.fpn_convs.0.conv", "encoder.neck.smooth")
    head = {"code_weights": state["queries.points"].new_ones(10)} | encoder(state) | decoder(state)
    return theirs | {f"pts_bbox_head.{name}": value for name, value in head.items()}


def vovnet_state(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    theirs = {}
    for i in range(3):
        theirs |= normed(state, f"stem.stem_{i + 1}", f"{prefix}.stem.{i}")
    names = {
        name.removeprefix(f"{prefix}.stages.")
        for name in state
        if name.startswith(f"{prefix}.stages.")
    }
    for stage, block in sorted({tuple(map(int, name.split(".")[:2])) for name in names}):
        ours = f"{prefix}.stages.{stage}.{block}"
        name = f"stage{stage + 2}.OSA{stage + 2}_{block + 1}"
        last = name.split(".")[1]
        for i in range(5):
            theirs |= normed(state, f"{name}.layers.{i}.{last}_{i}", f"{ours}.convs.{i}")
        theirs |= normed(state, f"{name}.concat.{last}_concat", f"{ours}.join")
        theirs |= linears(state, f"{name}.ese.fc", f"{ours}.weigh.fc")
    return theirs


def normed(state: dict[str, Tensor], name: str, ours: str) -> dict[str, Tensor]:
    """A convolution and its norm, which counts batches."""
    parts = ("weight", "bias", "running_mean", "running_var")
    theirs = {f"{name}/norm.{part}": state[f"{ours}.norm.{part}"] for part in parts}
    counter = {f"{name}/norm.num_batches_tracked": theirs[f"{name}/norm.bias"].new_zeros(()).long()}
    return {f"{name}/conv.weight": state[f"{ours}.conv.weight"]} | theirs | counter


def encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = linears(state, "input_proj", "encoder.projection")
    pairs = {"position_encoder.{}": "points", "adapt_pos3d.{}": "views"}
    layers = [
        (name.format(2 * i), f"encoder.{ours}.layers.{i}")
        for name, ours in pairs.items()
        for i in (0, 1)
    ]
    if "encoder.place.gate.layers.0.weight" in state:
        layers += [
            (f"fpe.conv_{name}", f"encoder.place.gate.layers.{i}")
            for i, name in enumerate(("reduce", "expand"))
        ]
    for name, ours in layers:
        convs = linears(state, name, ours)
        theirs |= convs | {f"{name}.weight": convs[f"{name}.weight"][..., None, None]}
    return theirs


def decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = {"reference_points.weight": state["queries.points"].flatten(0, 1)}
    for i in (0, 1):
        theirs |= linears(state, f"query_embedding.{2 * i}", f"queries.place.layers.{i}")
    theirs |= linears(state, "transformer.decoder.post_norm", "decoder.norm")
    count = len({name.split(".")[2] for name in state if name.startswith("decoder.layers.")})
    for i in range(count):
        name, ours = f"transformer.decoder.layers.{i}", f"decoder.layers.{i}"
        theirs |= competes(state, f"{name}.attentions.0.attn", f"{ours}.self_attention")
        theirs |= competes(state, f"{name}.attentions.1.attn", f"{ours}.cross_attention")
        theirs |= linears(state, f"{name}.ffns.0.layers.0.0", f"{ours}.feed_forward.expand")
        theirs |= linears(state, f"{name}.ffns.0.layers.1", f"{ours}.feed_forward.contract")
        for norm in range(3):
            theirs |= linears(state, f"{name}.norms.{norm}", f"{ours}.norm{norm + 1}")
        theirs |= head(state, i)
    return theirs


def head(state: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    ours = f"decoder.heads.{i}"
    theirs = linears(state, f"cls_branches.{i}.6", f"{ours}.classify")
    for layer in (0, 1, 3, 4):
        theirs |= linears(state, f"cls_branches.{i}.{layer}", f"{ours}.think.{layer}")
    if f"{ours}.regress.shared.layers.0.weight" not in state:
        for layer in range(3):
            theirs |= linears(
                state, f"reg_branches.{i}.{2 * layer}", f"{ours}.regress.layers.{layer}"
            )
        return theirs
    for layer in range(2):
        theirs |= linears(
            state,
            f"reg_branches.{i}.reg_branch.{3 * layer}",
            f"{ours}.regress.shared.layers.{layer}",
        )
        for part in range(5):
            name = f"reg_branches.{i}.task_heads.{part}.{2 * layer}"
            theirs |= linears(state, name, f"{ours}.regress.parts.{part}.layers.{layer}")
    return theirs
