"""A small model, and its weights as the authors and Hugging Face would name them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.modeling.detr import DetectionTransformer

SIZES: dict[str, Any] = {
    "channels": 16,
    "num_heads": 2,
    "hidden": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
}
SMALL = TinyConditionalDETR(num_classes=5, num_groups=3, num_queries=4, dropout=0.0, **SIZES)


@pytest.fixture
def model() -> DetectionTransformer:
    torch.manual_seed(0)
    return SMALL.build()


def official_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """What the authors of Conditional DETR would have saved, name by name."""
    state, theirs = dict(model.state_dict()), shared_state(model)
    for layer in (0, 1):
        scale = f"decoder.layers.1.cross_attention.aim.scale.layers.{layer}"
        theirs |= linears(state, f"transformer.decoder.query_scale.layers.{layer}", scale)
        theirs |= linears(
            state,
            f"transformer.decoder.ref_point_head.layers.{layer}",
            f"queries.point.layers.{layer}",
        )
    return theirs | {"query_embed.weight": state["queries.embedding"].flatten(0, 1)}


def dab_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """What those of DAB-DETR and DN-DETR would have saved: the box head under two names."""
    state, theirs = dict(model.state_dict()), shared_state(model)
    first = "decoder.layers.0.cross_attention.aim"
    networks = {
        "encoder.query_scale": "encoder.place.scale",
        "decoder.query_scale": f"{first.replace('0', '1')}.point.scale",
        "decoder.ref_point_head": "decoder.places.0.mlp",
        "decoder.ref_anchor_head": f"{first}.size",
    }
    for name, ours in networks.items():
        for layer in (0, 1):
            theirs |= linears(state, f"transformer.{name}.layers.{layer}", f"{ours}.layers.{layer}")
    for layer in (0, 1, 2):
        theirs |= linears(
            state,
            f"transformer.decoder.bbox_embed.layers.{layer}",
            f"decoder.heads.0.regress.layers.{layer}",
        )
    for part in ("encoder", "decoder"):
        for layer in range(getattr(model.recipe, f"{part}_layers")):
            slope = state[f"{part}.layers.{layer}.feed_forward.activation.weight"]
            theirs[f"transformer.{part}.layers.{layer}.activation.weight"] = slope
    renamed = {"anchors": "refpoint_embed.weight", "patterns": "transformer.patterns.weight"}
    for name in [name for name in state if name.startswith("queries.")]:
        theirs[renamed.get(name.split(".")[-1], "label_enc.weight")] = state[name]
    return theirs | {"refpoint_embed.weight": theirs["refpoint_embed.weight"].flatten(0, 1)}


def shared_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """What all of them save alike; the backbone's inner names are torchvision's or any."""
    state, theirs = dict(model.state_dict()), {}
    for name in [name for name in state if name.startswith("backbone.network.")]:
        theirs[name.replace("backbone.network.", "backbone.0.body.")] = state[name]
    for layer in range(model.recipe.encoder_layers):
        theirs |= _encoder_layer(
            state, f"encoder.layers.{layer}", f"transformer.encoder.layers.{layer}"
        )
    for layer in range(model.recipe.decoder_layers):
        theirs |= _decoder_layer(
            state, f"decoder.layers.{layer}", f"transformer.decoder.layers.{layer}"
        )
    theirs |= linears(state, "transformer.decoder.norm", "decoder.norm")
    theirs |= linears(state, "class_embed", "decoder.heads.0.classify")
    theirs |= linears(state, "input_proj", "encoder.projection")
    for layer in (0, 1, 2):
        theirs |= linears(
            state, f"bbox_embed.layers.{layer}", f"decoder.heads.0.regress.layers.{layer}"
        )
    return theirs


def linears(state: dict[str, Tensor], theirs: str, *ours: str) -> dict[str, Tensor]:
    """Weight and bias of one of their layers, stacked from as many of ours."""
    return {
        f"{theirs}.{part}": torch.cat([state[f"{name}.{part}"] for name in ours])
        for part in ("weight", "bias")
    }


def _encoder_layer(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    stacked = [f"{ours}.attention.{part}" for part in ("query", "key", "value")]
    found = {
        f"{theirs}.self_attn.in_proj_weight": torch.cat(
            [state[f"{name}.weight"] for name in stacked]
        )
    }
    found |= {
        f"{theirs}.self_attn.in_proj_bias": torch.cat([state[f"{name}.bias"] for name in stacked])
    }
    found |= linears(state, f"{theirs}.self_attn.out_proj", f"{ours}.attention.output")
    return found | ends(state, ours, theirs, norms=2)


def _decoder_layer(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    looks, competes = f"{ours}.cross_attention", f"{ours}.self_attention"
    names = {
        "sa_qcontent_proj": f"{competes}.query_content",
        "sa_qpos_proj": f"{competes}.query_position",
        "sa_kcontent_proj": f"{competes}.key_content",
        "sa_kpos_proj": f"{competes}.key_position",
        "sa_v_proj": f"{competes}.value",
        "self_attn.out_proj": f"{competes}.output",
        "ca_qcontent_proj": f"{looks}.query_content",
        "ca_qpos_sine_proj": f"{looks}.query_place",
        "ca_kcontent_proj": f"{looks}.key_content",
        "ca_kpos_proj": f"{looks}.key_place",
        "ca_v_proj": f"{looks}.value",
        "cross_attn.out_proj": f"{looks}.output",
    }
    if ours.endswith(".0"):
        names["ca_qpos_proj"] = f"{looks}.query_position"
    found = ends(state, ours, theirs, norms=3)
    for name, mine in names.items():
        found |= linears(state, f"{theirs}.{name}", mine)
    return found


def ends(state: dict[str, Tensor], ours: str, theirs: str, norms: int) -> dict[str, Tensor]:
    """The feed-forward network and the norms."""
    found = linears(state, f"{theirs}.linear1", f"{ours}.feed_forward.expand")
    found |= linears(state, f"{theirs}.linear2", f"{ours}.feed_forward.contract")
    for norm in range(1, norms + 1):
        found |= linears(state, f"{theirs}.norm{norm}", f"{ours}.norm{norm}")
    return found


def official_args(model: DetectionTransformer, **others: object) -> Namespace:
    recipe = model.recipe
    known = {
        "num_queries": recipe.num_queries,
        "group_detr": recipe.num_groups,
        "nheads": recipe.num_heads,
    }
    return Namespace(
        **{**known, "dropout": 0.1, "dilation": False, "dataset_file": "coco", **others}
    )


@pytest.fixture
def official_file(model: DetectionTransformer, tmp_path: Path) -> Path:
    """A checkpoint as the authors' main.py saves it, with 3 groups of 4 queries."""
    path = tmp_path / "checkpoint0011.pth"
    content = {
        "model": official_state(model),
        "optimizer": {"state": {}},
        "epoch": 11,
        "args": official_args(model),
    }
    torch.save(content, path)
    return path
