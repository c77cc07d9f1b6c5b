"""Weights of Mask2Former under the names of its authors, and in their file format."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer

from .conftest import attention_state, feed_forward_and_norms, linear_state
from .deformable import deformable_attention_state, detectron2_name, mlp_state


def mask2former_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under the authors' names. K groups of queries are K*N rows."""
    state = dict(model.state_dict())
    theirs = {}
    for name in [name for name in state if name.startswith("backbone.network.")]:
        theirs[detectron2_name(name)] = state[name]
    for name, value in pixel_decoder_state(state, model.recipe.encoder_layers).items():
        theirs[f"sem_seg_head.pixel_decoder.{name}"] = value
    for name, value in predictor_state(state, model.recipe.decoder_layers).items():
        theirs[f"sem_seg_head.predictor.{name}"] = value
    weights = state["decoder.norm.weight"].new_ones(model.recipe.num_classes + 1)
    return theirs | {"criterion.empty_weight": weights}


def pixel_decoder_state(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    theirs = linear_state(state, "mask_features", "encoder.pixels")
    for name, ours in {"adapter_1": "lateral", "layer_1": "smooth"}.items():
        theirs[f"{name}.weight"] = state[f"encoder.{ours}.0.weight"]
        theirs |= linear_state(state, f"{name}.norm", f"encoder.{ours}.1")
    for level in range(3):
        for part in range(2):
            theirs |= linear_state(
                state,
                f"input_proj.{level}.{part}",
                f"encoder.encoder.project.levels.{level}.{part}",
            )
    for i in range(layers):
        name, ours = f"transformer.encoder.layers.{i}", f"encoder.encoder.layers.{i}"
        theirs |= deformable_attention_state(state, f"{name}.self_attn", f"{ours}.attention")
        theirs |= feed_forward_and_norms(state, ours, name, norms=2)
    return theirs | {"transformer.level_embed": state["encoder.encoder.level_embed"]}


def predictor_state(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return the queries, the transformer decoder and the heads."""
    theirs = {
        "query_feat.weight": state["queries.embedding"].flatten(0, 1),
        "query_embed.weight": state["queries.position"].flatten(0, 1),
        "level_embed.weight": state["encoder.level_embed"],
    }
    for i in range(layers):
        ours = f"decoder.layers.{i}"
        name = f"transformer_cross_attention_layers.{i}"
        theirs |= attention_state(state, f"{name}.multihead_attn", f"{ours}.cross_attention")
        theirs |= linear_state(state, f"{name}.norm", f"{ours}.norm2")
        name = f"transformer_self_attention_layers.{i}"
        theirs |= attention_state(state, f"{name}.self_attn", f"{ours}.self_attention")
        theirs |= linear_state(state, f"{name}.norm", f"{ours}.norm1")
        name = f"transformer_ffn_layers.{i}"
        theirs |= linear_state(state, f"{name}.linear1", f"{ours}.feed_forward.expand")
        theirs |= linear_state(state, f"{name}.linear2", f"{ours}.feed_forward.contract")
        theirs |= linear_state(state, f"{name}.norm", f"{ours}.norm3")
    head = "decoder.heads.0"
    theirs |= linear_state(state, "decoder_norm", "decoder.norm")
    theirs |= mlp_state(state, "mask_embed", f"{head}.embed", 3)
    return theirs | linear_state(state, "class_embed", f"{head}.classify", f"{head}.no_object")


def write_pickle(path: Path, state: Mapping[str, Tensor], protocol: int = 4) -> Path:
    """Write a file as detectron2 writes its model zoo."""
    arrays = {name: value.detach().numpy() for name, value in state.items()}
    content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    return path
