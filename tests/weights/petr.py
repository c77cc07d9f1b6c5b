"""Weights of PETR and PETRv2 under the names of their authors."""

from __future__ import annotations

from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer

from .conftest import attention_state, linear_state


def petr_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under the authors' names. K groups of queries are K*N rows."""
    state = dict(model.state_dict())
    theirs = {}
    for name, value in vovnet_state(state, "backbone.network").items():
        theirs[f"img_backbone.{name}"] = value
    for level in range(2):
        theirs |= linear_state(
            state, f"img_neck.lateral_convs.{level}.conv", f"encoder.neck.lateral.{level}"
        )
    theirs |= linear_state(state, "img_neck.fpn_convs.0.conv", "encoder.neck.smooth")
    bbox_head = {"code_weights": state["queries.points"].new_ones(10)}
    bbox_head |= encoder_state(state) | decoder_state(state)
    return theirs | {f"pts_bbox_head.{name}": value for name, value in bbox_head.items()}


def vovnet_state(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return a VoVNet, whose names in ``state`` start with ``prefix``."""
    theirs = {}
    for i in range(3):
        theirs |= conv_and_norm(state, f"stem.stem_{i + 1}", f"{prefix}.stem.{i}")
    blocks = set()
    for name in state:
        if name.startswith(f"{prefix}.stages."):
            stage, block = name.removeprefix(f"{prefix}.stages.").split(".")[:2]
            blocks.add((int(stage), int(block)))
    for stage, block in sorted(blocks):
        ours = f"{prefix}.stages.{stage}.{block}"
        block_name = f"OSA{stage + 2}_{block + 1}"
        name = f"stage{stage + 2}.{block_name}"
        for i in range(5):
            theirs |= conv_and_norm(
                state, f"{name}.layers.{i}.{block_name}_{i}", f"{ours}.convs.{i}"
            )
        theirs |= conv_and_norm(state, f"{name}.concat.{block_name}_concat", f"{ours}.concat")
        theirs |= linear_state(state, f"{name}.ese.fc", f"{ours}.ese.fc")
    return theirs


def conv_and_norm(state: dict[str, Tensor], name: str, ours: str) -> dict[str, Tensor]:
    """Return a convolution and its norm, which also counts batches."""
    parts = ("weight", "bias", "running_mean", "running_var")
    theirs = {f"{name}/norm.{part}": state[f"{ours}.norm.{part}"] for part in parts}
    counter = {f"{name}/norm.num_batches_tracked": theirs[f"{name}/norm.bias"].new_zeros(()).long()}
    return {f"{name}/conv.weight": state[f"{ours}.conv.weight"]} | theirs | counter


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = linear_state(state, "input_proj", "encoder.projection")
    layers = {
        "position_encoder.0": "encoder.point_embed.layers.0",
        "position_encoder.2": "encoder.point_embed.layers.1",
        "adapt_pos3d.0": "encoder.view_embed.layers.0",
        "adapt_pos3d.2": "encoder.view_embed.layers.1",
    }
    if "encoder.position_embedding.gate.layers.0.weight" in state:
        layers["fpe.conv_reduce"] = "encoder.position_embedding.gate.layers.0"
        layers["fpe.conv_expand"] = "encoder.position_embedding.gate.layers.1"
    for name, ours in layers.items():
        conv = linear_state(state, name, ours)
        conv[f"{name}.weight"] = conv[f"{name}.weight"][..., None, None]
        theirs |= conv
    return theirs


def decoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = {"reference_points.weight": state["queries.points"].flatten(0, 1)}
    for i in (0, 1):
        theirs |= linear_state(
            state, f"query_embedding.{2 * i}", f"queries.position_embedding.layers.{i}"
        )
    theirs |= linear_state(state, "transformer.decoder.post_norm", "decoder.norm")
    count = len({name.split(".")[2] for name in state if name.startswith("decoder.layers.")})
    for i in range(count):
        name, ours = f"transformer.decoder.layers.{i}", f"decoder.layers.{i}"
        theirs |= attention_state(state, f"{name}.attentions.0.attn", f"{ours}.self_attention")
        theirs |= attention_state(state, f"{name}.attentions.1.attn", f"{ours}.cross_attention")
        theirs |= linear_state(state, f"{name}.ffns.0.layers.0.0", f"{ours}.feed_forward.expand")
        theirs |= linear_state(state, f"{name}.ffns.0.layers.1", f"{ours}.feed_forward.contract")
        for norm in range(3):
            theirs |= linear_state(state, f"{name}.norms.{norm}", f"{ours}.norm{norm + 1}")
        theirs |= head_state(state, i)
    return theirs


def head_state(state: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    ours = f"decoder.heads.{i}"
    theirs = linear_state(state, f"cls_branches.{i}.6", f"{ours}.classify")
    for layer in (0, 1, 3, 4):
        theirs |= linear_state(state, f"cls_branches.{i}.{layer}", f"{ours}.cls_branch.{layer}")
    is_v2 = f"{ours}.regress.shared.layers.0.weight" in state
    if not is_v2:
        for layer in range(3):
            theirs |= linear_state(
                state, f"reg_branches.{i}.{2 * layer}", f"{ours}.regress.layers.{layer}"
            )
        return theirs
    for layer in range(2):
        theirs |= linear_state(
            state,
            f"reg_branches.{i}.reg_branch.{3 * layer}",
            f"{ours}.regress.shared.layers.{layer}",
        )
        for part in range(5):
            name = f"reg_branches.{i}.task_heads.{part}.{2 * layer}"
            theirs |= linear_state(state, name, f"{ours}.regress.branches.{part}.layers.{layer}")
    return theirs
