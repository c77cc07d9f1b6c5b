"""Files of PaddlePaddle, and weights under the names of PaddleDetection's Group DINO."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer

from .conftest import attention_state, feed_forward_and_norms, linear_state
from .deformable import deformable_attention_state, mlp_state

# What `paddle.save` adds: the names that the parameters have in a program
NAMES_IN_PROGRAM = "StructuredToParameterName@@"
EMBEDDINGS = ("tgt_embed", "level_embed", "denoising_class_embed", "rel_pos")


def write_pdparams(path: Path, arrays: Mapping[str, Any], protocol: int = 4) -> Path:
    """Write named arrays as `paddle.save` does, and return the path."""
    names = {name: f"parameter_{number}" for number, name in enumerate(arrays)}
    with path.open("wb") as file:
        pickle.dump({**arrays, NAMES_IN_PROGRAM: names}, file, protocol)
    return path


def group_dino_arrays(model: DetectionTransformer) -> dict[str, NDArray[Any]]:
    """Return the weights of a DINO with a plain ViT under PaddleDetection's names."""
    arrays = {}
    for name, value in _group_dino_state(model).items():
        is_matrix = value.ndim == 2 and not any(part in name for part in EMBEDDINGS)
        arrays[name] = np.ascontiguousarray((value.T if is_matrix else value).numpy())
    return arrays


def _group_dino_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """Return the weights under PaddleDetection's names, with matrices as torch has them."""
    state, theirs = dict(model.state_dict()), {}
    levels = {"fine": "simfp_3", "same": "simfp_4", "coarse": "simfp_5"}
    for name, value in state.items():
        if name.startswith("backbone.network.vit."):
            theirs[name.replace("network.vit.", "")] = value
        elif name.startswith("backbone.network.pyramid."):
            _, _, _, level, rest = name.split(".", 4)
            theirs[f"neck.{levels[level]}.{rest}"] = value
    theirs["transformer.level_embed.weight"] = state["encoder.level_embed"]
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
        heads = f"decoder.heads.{i}"
        theirs |= linear_state(state, f"transformer.dec_score_head.{i}", f"{heads}.classify")
        theirs |= mlp_state(state, f"transformer.dec_bbox_head.{i}", f"{heads}.regress", 3)
    theirs |= linear_state(state, "transformer.decoder.norm", "decoder.norm")
    theirs |= mlp_state(state, "transformer.query_pos_head", "decoder.position_embeddings.0.mlp", 2)
    for group in range(model.recipe.num_groups):
        theirs |= _group_state(state, group)
    return theirs


def _group_state(state: dict[str, Tensor], group: int) -> dict[str, Tensor]:
    """Return the weights of the queries of one group under PaddleDetection's names."""
    ours = {name: value[group] for name, value in state.items() if name.startswith("queries.")}
    heads = "queries.matching.heads"
    names = {
        "tgt_embed": "tgt_embed",
        "class": "enc_score_head",
        "box": "enc_bbox_head",
        "label": "denoising_class_embed",
    }
    if group > 0:
        names = {
            "tgt_embed": f"tgt_embed_dual.{group - 1}",
            "class": f"enc_score_head_dq.{group - 1}",
            "box": f"enc_bbox_head_dq.{group - 1}",
            "label": f"denoising_class_embed_groups.{group - 1}",
        }
    theirs = {
        f"{names['tgt_embed']}.weight": ours["queries.matching.embedding"],
        # Without the last row, which is "no object"
        f"{names['label']}.weight": ours["queries.labels.weight"][:-1],
        f"enc_output.{group}.1.weight": ours[f"{heads}.norm_weight"],
        f"enc_output.{group}.1.bias": ours[f"{heads}.norm_bias"],
    }
    theirs |= linear_state(ours, f"enc_output.{group}.0", f"{heads}.project")
    theirs |= linear_state(ours, names["class"], f"{heads}.classify")
    for i in (0, 1, 2):
        theirs |= linear_state(ours, f"{names['box']}.layers.{i}", f"{heads}.regress.{i}")
    return {f"transformer.{name}": value for name, value in theirs.items()}
