"""Weights of the deformable family as the authors and detrex would name them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer

from .conftest import ends, linears

ATTENTION = {
    "sampling_offsets": "offsets",
    "attention_weights": "weights",
    "value_proj": "value",
    "output_proj": "output",
}


def dab_deformable_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """What the authors of DAB-Deformable-DETR would have saved: box heads under two names."""
    state, theirs = dict(model.state_dict()), authors_state(model)
    theirs |= mlp(state, "transformer.decoder.query_scale", "decoder.places.1.scale", 2)
    for i in range(model.recipe.decoder_layers):
        theirs |= linears(state, f"class_embed.{i}", f"decoder.heads.{i}.classify")
        for name in ("bbox_embed", "transformer.decoder.bbox_embed"):
            theirs |= mlp(state, f"{name}.{i}", f"decoder.heads.{i}.regress", 3)
    tables = {"tgt_embed.weight": "queries.embedding", "refpoint_embed.weight": "queries.anchors"}
    return theirs | {name: state[ours].flatten(0, 1) for name, ours in tables.items()}


def dino_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Those of DINO, who have no groups: the shared heads under a name for each layer, twice."""
    state, theirs = dict(model.state_dict()), authors_state(model)
    theirs |= linears(state, "transformer.decoder.norm", "decoder.norm")
    for i in range(model.recipe.decoder_layers):
        for place in ("", "transformer.decoder."):
            theirs |= linears(state, f"{place}class_embed.{i}", "decoder.heads.0.classify")
            theirs |= mlp(state, f"{place}bbox_embed.{i}", "decoder.heads.0.regress", 3)
    theirs |= proposals(state, "transformer.enc_out_class_embed", "transformer.enc_out_bbox_embed")
    return theirs | {"label_enc.weight": state["queries.labels.weight"]}


def detrex_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """detrex's DINO with ResNet-50: heads for each layer and a last one for proposals, twice."""
    state, theirs = dict(model.state_dict()), {}
    for name in [name for name in state if name.startswith("backbone.network.")]:
        theirs[detectron2(name)] = state[name]
    for level in range(4):
        place = f"neck.convs.{level}" if level < 3 else "neck.extra_convs.0"
        theirs |= linears(state, f"{place}.conv", f"encoder.project.levels.{level}.0")
        theirs |= linears(state, f"{place}.norm", f"encoder.project.levels.{level}.1")
    theirs |= {"transformer.level_embeds": state["encoder.level"]}
    for i in range(model.recipe.encoder_layers):
        ours, their = f"encoder.layers.{i}", f"transformer.encoder.layers.{i}"
        theirs |= looks(state, f"{their}.attentions.0", f"{ours}.attention") | detrex_ends(
            state, their, ours, 2
        )
    for i in range(model.recipe.decoder_layers):
        ours, their = f"decoder.layers.{i}", f"transformer.decoder.layers.{i}"
        theirs |= competes(state, f"{their}.attentions.0.attn", f"{ours}.self_attention")
        theirs |= looks(state, f"{their}.attentions.1", f"{ours}.cross_attention") | detrex_ends(
            state, their, ours, 3
        )
        for place in ("", "transformer.decoder."):
            theirs |= linears(state, f"{place}class_embed.{i}", f"decoder.heads.{i}.classify")
            theirs |= mlp(state, f"{place}bbox_embed.{i}", f"decoder.heads.{i}.regress", 3)
    theirs |= linears(state, "transformer.decoder.norm", "decoder.norm")
    theirs |= mlp(state, "transformer.decoder.ref_point_head", "decoder.places.0.mlp", 2)
    last = model.recipe.decoder_layers
    for place in ("", "transformer.decoder."):
        theirs |= proposals(state, f"{place}class_embed.{last}", f"{place}bbox_embed.{last}")
    return theirs | {"label_enc.weight": state["queries.labels.weight"][:-1]}


def authors_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """What both official detectors have."""
    state, theirs = dict(model.state_dict()), {}
    for name in [name for name in state if name.startswith("backbone.network.")]:
        theirs[name.replace("backbone.network.", "backbone.0.body.")] = state[name]
    for level in range(model.recipe.num_levels):
        for part in (0, 1):
            theirs |= linears(
                state, f"input_proj.{level}.{part}", f"encoder.project.levels.{level}.{part}"
            )
    theirs |= {"transformer.level_embed": state["encoder.level"]}
    for i in range(model.recipe.encoder_layers):
        ours, their = f"encoder.layers.{i}", f"transformer.encoder.layers.{i}"
        theirs |= looks(state, f"{their}.self_attn", f"{ours}.attention") | ends(
            state, ours, their, norms=2
        )
    for i in range(model.recipe.decoder_layers):
        ours, their = f"decoder.layers.{i}", f"transformer.decoder.layers.{i}"
        theirs |= competes(state, f"{their}.self_attn", f"{ours}.self_attention")
        theirs |= looks(state, f"{their}.cross_attn", f"{ours}.cross_attention") | ends(
            state, ours, their, norms=3
        )
        theirs |= linears(state, f"{their}.norm1", f"{ours}.norm2") | linears(
            state, f"{their}.norm2", f"{ours}.norm1"
        )
    return theirs | mlp(state, "transformer.decoder.ref_point_head", "decoder.places.0.mlp", 2)


def detectron2(name: str) -> str:
    """A tensor of our ResNet-50 under detectron2's name: the stem's and stages' convolutions own their norms."""
    name = name.removeprefix("backbone.network.")
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    name = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
    return f"backbone.{name}" if name.startswith("res") else f"backbone.stem.{name}"


def mlp(state: dict[str, Tensor], theirs: str, ours: str, layers: int) -> dict[str, Tensor]:
    named = (linears(state, f"{theirs}.layers.{i}", f"{ours}.layers.{i}") for i in range(layers))
    return {name: value for layer in named for name, value in layer.items()}


def looks(state: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Deformable attention."""
    named = (linears(state, f"{theirs}.{a}", f"{ours}.{b}") for a, b in ATTENTION.items())
    return {name: value for layer in named for name, value in layer.items()}


def competes(state: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Self-attention, whose three inputs are one tensor."""
    found = linears(
        state, f"{theirs}.in_proj", *(f"{ours}.{part}" for part in ("query", "key", "value"))
    )
    found = {name.replace("in_proj.", "in_proj_"): value for name, value in found.items()}
    return found | linears(state, f"{theirs}.out_proj", f"{ours}.output")


def detrex_ends(state: dict[str, Tensor], theirs: str, ours: str, norms: int) -> dict[str, Tensor]:
    found = linears(state, f"{theirs}.ffns.0.layers.0.0", f"{ours}.feed_forward.expand")
    found |= linears(state, f"{theirs}.ffns.0.layers.1", f"{ours}.feed_forward.contract")
    for i in range(norms):
        found |= linears(state, f"{theirs}.norms.{i}", f"{ours}.norm{i + 1}")
    return found


def proposals(state: dict[str, Tensor], classify: str, regress: str) -> dict[str, Tensor]:
    """What reads proposals off tokens, of group 0, and the contents that all queries start with."""
    heads = "queries.matching.heads"
    one = {name: value[0] for name, value in state.items() if name.startswith(heads)}
    found = linears(one, "transformer.enc_output", f"{heads}.project") | linears(
        one, classify, f"{heads}.classify"
    )
    for i in (0, 1, 2):
        found |= linears(one, f"{regress}.layers.{i}", f"{heads}.regress.{i}")
    found |= {
        f"transformer.enc_output_norm.{part}": one[f"{heads}.norm_{part}"]
        for part in ("weight", "bias")
    }
    return found | {
        "transformer.tgt_embed.weight": torch.cat([*state["queries.matching.embedding"]])
    }
