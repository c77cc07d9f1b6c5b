"""A small model, and its weights under the names of the official checkpoints."""

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
    "dim_feedforward": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
}
SMALL = TinyConditionalDETR(num_classes=5, num_groups=3, num_queries=4, dropout=0.0, **SIZES)


@pytest.fixture
def model() -> DetectionTransformer:
    torch.manual_seed(0)
    return SMALL.build()


def official_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under the names of the authors of Conditional DETR."""
    state, theirs = dict(model.state_dict()), shared_state(model)
    for layer in (0, 1):
        theirs |= linear_state(
            state,
            f"transformer.decoder.query_scale.layers.{layer}",
            f"decoder.layers.1.cross_attention.query_sine_embed.scale.layers.{layer}",
        )
        theirs |= linear_state(
            state,
            f"transformer.decoder.ref_point_head.layers.{layer}",
            f"queries.ref_point_head.layers.{layer}",
        )
    return theirs | {"query_embed.weight": state["queries.embedding"].flatten(0, 1)}


def dab_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under the names of the authors of DAB-DETR and DN-DETR.

    The box head has two names.
    """
    state, theirs = dict(model.state_dict()), shared_state(model)
    mlps = {
        "encoder.query_scale": "encoder.position_embedding.scale",
        "decoder.query_scale": "decoder.layers.1.cross_attention.query_sine_embed.point.scale",
        "decoder.ref_point_head": "decoder.position_embeddings.0.mlp",
        "decoder.ref_anchor_head": "decoder.layers.0.cross_attention.query_sine_embed.size",
    }
    for name, ours in mlps.items():
        for layer in (0, 1):
            theirs |= linear_state(
                state, f"transformer.{name}.layers.{layer}", f"{ours}.layers.{layer}"
            )
    for layer in (0, 1, 2):
        theirs |= linear_state(
            state,
            f"transformer.decoder.bbox_embed.layers.{layer}",
            f"decoder.heads.0.regress.layers.{layer}",
        )
    num_layers = {"encoder": model.recipe.encoder_layers, "decoder": model.recipe.decoder_layers}
    for part, count in num_layers.items():
        for layer in range(count):
            slope = state[f"{part}.layers.{layer}.feed_forward.activation.weight"]
            theirs[f"transformer.{part}.layers.{layer}.activation.weight"] = slope
    query_names = {"anchors": "refpoint_embed.weight", "patterns": "transformer.patterns.weight"}
    for name in [name for name in state if name.startswith("queries.")]:
        last = name.split(".")[-1]
        theirs[query_names.get(last, "label_enc.weight")] = state[name]
    return theirs | {"refpoint_embed.weight": theirs["refpoint_embed.weight"].flatten(0, 1)}


def shared_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights that all of these checkpoints name alike.

    The names inside the backbone are torchvision's, or any.
    """
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
    theirs |= linear_state(state, "transformer.decoder.norm", "decoder.norm")
    theirs |= linear_state(state, "class_embed", "decoder.heads.0.classify")
    theirs |= linear_state(state, "input_proj", "encoder.projection")
    for layer in (0, 1, 2):
        theirs |= linear_state(
            state, f"bbox_embed.layers.{layer}", f"decoder.heads.0.regress.layers.{layer}"
        )
    return theirs


def linear_state(state: dict[str, Tensor], theirs: str, *ours: str) -> dict[str, Tensor]:
    """Return weight and bias of one of their layers, which stacks one or several of ours."""
    layer = {}
    for part in ("weight", "bias"):
        layer[f"{theirs}.{part}"] = torch.cat([state[f"{name}.{part}"] for name in ours])
    return layer


def attention_state(state: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Return torch's attention, which stacks the projections of queries, keys and values."""
    inputs = [f"{ours}.{name}" for name in ("query_proj", "key_proj", "value_proj")]
    projections = {}
    for name, value in linear_state(state, f"{theirs}.in_proj", *inputs).items():
        projections[name.replace("in_proj.", "in_proj_")] = value
    return projections | linear_state(state, f"{theirs}.out_proj", f"{ours}.output_proj")


def _encoder_layer(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    layer = attention_state(state, f"{theirs}.self_attn", f"{ours}.attention")
    return layer | feed_forward_and_norms(state, ours, theirs, norms=2)


def _decoder_layer(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    names = {
        "sa_qcontent_proj": "self_attention.query_content_proj",
        "sa_qpos_proj": "self_attention.query_pos_proj",
        "sa_kcontent_proj": "self_attention.key_content_proj",
        "sa_kpos_proj": "self_attention.key_pos_proj",
        "sa_v_proj": "self_attention.value_proj",
        "self_attn.out_proj": "self_attention.output_proj",
        "ca_qcontent_proj": "cross_attention.query_content_proj",
        "ca_qpos_sine_proj": "cross_attention.query_sine_proj",
        "ca_kcontent_proj": "cross_attention.key_content_proj",
        "ca_kpos_proj": "cross_attention.key_pos_proj",
        "ca_v_proj": "cross_attention.value_proj",
        "cross_attn.out_proj": "cross_attention.output_proj",
    }
    if ours.endswith(".0"):
        names["ca_qpos_proj"] = "cross_attention.query_pos_proj"
    layer = feed_forward_and_norms(state, ours, theirs, norms=3)
    for their_name, our_name in names.items():
        layer |= linear_state(state, f"{theirs}.{their_name}", f"{ours}.{our_name}")
    return layer


def feed_forward_and_norms(
    state: dict[str, Tensor], ours: str, theirs: str, norms: int
) -> dict[str, Tensor]:
    layer = linear_state(state, f"{theirs}.linear1", f"{ours}.feed_forward.expand")
    layer |= linear_state(state, f"{theirs}.linear2", f"{ours}.feed_forward.contract")
    for norm in range(1, norms + 1):
        layer |= linear_state(state, f"{theirs}.norm{norm}", f"{ours}.norm{norm}")
    return layer


def official_args(model: DetectionTransformer, **others: object) -> Namespace:
    """Return the arguments of the authors' training script, which their checkpoints contain."""
    recipe = model.recipe
    args = {
        "num_queries": recipe.num_queries,
        "group_detr": recipe.num_groups,
        "nheads": recipe.num_heads,
        "dropout": 0.1,
        "dilation": False,
        "dataset_file": "coco",
    }
    return Namespace(**{**args, **others})


@pytest.fixture
def official_file(model: DetectionTransformer, tmp_path: Path) -> Path:
    """A checkpoint with 3 groups of 4 queries, as the authors' main.py saves it."""
    path = tmp_path / "checkpoint0011.pth"
    content = {
        "model": official_state(model),
        "optimizer": {"state": {}},
        "epoch": 11,
        "args": official_args(model),
    }
    torch.save(content, path)
    return path
