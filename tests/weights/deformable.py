"""Weights of the deformable detectors under the names of the authors and of detrex."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer

from .conftest import attention_state, feed_forward_and_norms, linear_state

DEFORMABLE_ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


def dab_deformable_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under the names of the authors of DAB-Deformable-DETR.

    The box heads have two names.
    """
    state, theirs = dict(model.state_dict()), authors_state(model)
    theirs |= mlp_state(
        state, "transformer.decoder.query_scale", "decoder.position_embeddings.1.scale", 2
    )
    for i in range(model.recipe.decoder_layers):
        theirs |= linear_state(state, f"class_embed.{i}", f"decoder.heads.{i}.classify")
        for name in ("bbox_embed", "transformer.decoder.bbox_embed"):
            theirs |= mlp_state(state, f"{name}.{i}", f"decoder.heads.{i}.regress", 3)
    tables = {"tgt_embed.weight": "queries.embedding", "refpoint_embed.weight": "queries.anchors"}
    return theirs | {name: state[ours].flatten(0, 1) for name, ours in tables.items()}


def dino_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under the names of the authors of DINO, whose code has no groups.

    The shared heads have a name for each layer, and that twice.
    """
    state, theirs = dict(model.state_dict()), authors_state(model)
    theirs |= linear_state(state, "transformer.decoder.norm", "decoder.norm")
    for i in range(model.recipe.decoder_layers):
        for prefix in ("", "transformer.decoder."):
            theirs |= linear_state(state, f"{prefix}class_embed.{i}", "decoder.heads.0.classify")
            theirs |= mlp_state(state, f"{prefix}bbox_embed.{i}", "decoder.heads.0.regress", 3)
    theirs |= proposal_state(
        state, "transformer.enc_out_class_embed", "transformer.enc_out_bbox_embed"
    )
    return theirs | {"label_enc.weight": state["queries.labels.weight"]}


def detrex_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under the names of detrex's DINO with ResNet-50.

    There is a head for each layer and one more for proposals, and that twice.
    """
    state, theirs = dict(model.state_dict()), {}
    for name in [name for name in state if name.startswith("backbone.network.")]:
        theirs[detectron2_name(name)] = state[name]
    for level in range(4):
        neck = f"neck.convs.{level}" if level < 3 else "neck.extra_convs.0"
        theirs |= linear_state(state, f"{neck}.conv", f"encoder.project.levels.{level}.0")
        theirs |= linear_state(state, f"{neck}.norm", f"encoder.project.levels.{level}.1")
    theirs |= {"transformer.level_embeds": state["encoder.level_embed"]}
    for i in range(model.recipe.encoder_layers):
        ours, their = f"encoder.layers.{i}", f"transformer.encoder.layers.{i}"
        theirs |= deformable_attention_state(state, f"{their}.attentions.0", f"{ours}.attention")
        theirs |= detrex_feed_forward_and_norms(state, their, ours, 2)
    for i in range(model.recipe.decoder_layers):
        ours, their = f"decoder.layers.{i}", f"transformer.decoder.layers.{i}"
        theirs |= attention_state(state, f"{their}.attentions.0.attn", f"{ours}.self_attention")
        theirs |= deformable_attention_state(
            state, f"{their}.attentions.1", f"{ours}.cross_attention"
        )
        theirs |= detrex_feed_forward_and_norms(state, their, ours, 3)
        for prefix in ("", "transformer.decoder."):
            theirs |= linear_state(state, f"{prefix}class_embed.{i}", f"decoder.heads.{i}.classify")
            theirs |= mlp_state(state, f"{prefix}bbox_embed.{i}", f"decoder.heads.{i}.regress", 3)
    theirs |= linear_state(state, "transformer.decoder.norm", "decoder.norm")
    theirs |= mlp_state(
        state, "transformer.decoder.ref_point_head", "decoder.position_embeddings.0.mlp", 2
    )
    last = model.recipe.decoder_layers
    for prefix in ("", "transformer.decoder."):
        theirs |= proposal_state(state, f"{prefix}class_embed.{last}", f"{prefix}bbox_embed.{last}")
    return theirs | {"label_enc.weight": state["queries.labels.weight"][:-1]}


def authors_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights that both official detectors name alike."""
    state, theirs = dict(model.state_dict()), {}
    for name in [name for name in state if name.startswith("backbone.network.")]:
        theirs[name.replace("backbone.network.", "backbone.0.body.")] = state[name]
    for level in range(model.recipe.num_levels):
        for part in (0, 1):
            theirs |= linear_state(
                state, f"input_proj.{level}.{part}", f"encoder.project.levels.{level}.{part}"
            )
    theirs |= {"transformer.level_embed": state["encoder.level_embed"]}
    for i in range(model.recipe.encoder_layers):
        ours, their = f"encoder.layers.{i}", f"transformer.encoder.layers.{i}"
        theirs |= deformable_attention_state(state, f"{their}.self_attn", f"{ours}.attention")
        theirs |= feed_forward_and_norms(state, ours, their, norms=2)
    for i in range(model.recipe.decoder_layers):
        ours, their = f"decoder.layers.{i}", f"transformer.decoder.layers.{i}"
        theirs |= attention_state(state, f"{their}.self_attn", f"{ours}.self_attention")
        theirs |= deformable_attention_state(
            state, f"{their}.cross_attn", f"{ours}.cross_attention"
        )
        theirs |= feed_forward_and_norms(state, ours, their, norms=3)
        theirs |= linear_state(state, f"{their}.norm1", f"{ours}.norm2")
        theirs |= linear_state(state, f"{their}.norm2", f"{ours}.norm1")
    return theirs | mlp_state(
        state, "transformer.decoder.ref_point_head", "decoder.position_embeddings.0.mlp", 2
    )


def detectron2_name(name: str) -> str:
    """Return detectron2's name of a tensor of our ResNet-50.

    There the convolutions of the stem and of the stages own their norms.
    """
    name = name.removeprefix("backbone.network.")
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    return f"backbone.{name}" if name.startswith("res") else f"backbone.stem.{name}"


def mlp_state(state: dict[str, Tensor], theirs: str, ours: str, layers: int) -> dict[str, Tensor]:
    mlp = {}
    for i in range(layers):
        mlp |= linear_state(state, f"{theirs}.layers.{i}", f"{ours}.layers.{i}")
    return mlp


def deformable_attention_state(
    state: dict[str, Tensor], theirs: str, ours: str
) -> dict[str, Tensor]:
    attention = {}
    for name in DEFORMABLE_ATTENTION:
        attention |= linear_state(state, f"{theirs}.{name}", f"{ours}.{name}")
    return attention


def detrex_feed_forward_and_norms(
    state: dict[str, Tensor], theirs: str, ours: str, norms: int
) -> dict[str, Tensor]:
    layer = linear_state(state, f"{theirs}.ffns.0.layers.0.0", f"{ours}.feed_forward.expand")
    layer |= linear_state(state, f"{theirs}.ffns.0.layers.1", f"{ours}.feed_forward.contract")
    for i in range(norms):
        layer |= linear_state(state, f"{theirs}.norms.{i}", f"{ours}.norm{i + 1}")
    return layer


def proposal_state(state: dict[str, Tensor], classify: str, regress: str) -> dict[str, Tensor]:
    """Return the proposal head of group 0, and the content embeddings of all queries."""
    heads = "queries.matching.heads"
    group_0 = {name: value[0] for name, value in state.items() if name.startswith(heads)}
    theirs = linear_state(group_0, "transformer.enc_output", f"{heads}.project")
    theirs |= linear_state(group_0, classify, f"{heads}.classify")
    for i in (0, 1, 2):
        theirs |= linear_state(group_0, f"{regress}.layers.{i}", f"{heads}.regress.{i}")
    for part in ("weight", "bias"):
        theirs[f"transformer.enc_output_norm.{part}"] = group_0[f"{heads}.norm_{part}"]
    content = torch.cat([*state["queries.matching.embedding"]])
    return theirs | {"transformer.tgt_embed.weight": content}
