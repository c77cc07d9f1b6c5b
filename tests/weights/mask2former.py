"""Weights of Mask2Former as its authors would name them, and write them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from groupdetr.modeling.detr import DetectionTransformer

from .conftest import ends, linears
from .deformable import competes, detectron2, looks, mlp


def mask2former_state(model: DetectionTransformer) -> dict[str, Tensor]:
    """What they would have saved, name by name; K groups of queries are as many rows."""
    state = dict(model.state_dict())
    theirs = {
        detectron2(name): state[name] for name in state if name.startswith("backbone.network.")
    }
    pixels, predictor = (
        pixel_decoder(state, model.recipe.encoder_layers),
        transformer(state, model.recipe),
    )
    theirs |= {f"sem_seg_head.pixel_decoder.{name}": value for name, value in pixels.items()}
    theirs |= {f"sem_seg_head.predictor.{name}": value for name, value in predictor.items()}
    weights = state["decoder.norm.weight"].new_ones(model.recipe.num_classes + 1)
    return theirs | {"criterion.empty_weight": weights}


def pixel_decoder(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    theirs = linears(state, "mask_features", "encoder.pixels")
    for name, ours in {"adapter_1": "lateral", "layer_1": "smooth"}.items():
        theirs[f"{name}.weight"] = state[f"encoder.{ours}.0.weight"]
        theirs |= linears(state, f"{name}.norm", f"encoder.{ours}.1")
    for level, part in ((level, part) for level in range(3) for part in range(2)):
        theirs |= linears(
            state, f"input_proj.{level}.{part}", f"encoder.encoder.project.levels.{level}.{part}"
        )
    for i in range(layers):
        name, ours = f"transformer.encoder.layers.{i}", f"encoder.encoder.layers.{i}"
        theirs |= looks(state, f"{name}.self_attn", f"{ours}.attention") | ends(
            state, ours, name, norms=2
        )
    return theirs | {"transformer.level_embed": state["encoder.encoder.level"]}


def transformer(state: dict[str, Tensor], recipe: object) -> dict[str, Tensor]:
    theirs = {
        "query_feat.weight": state["queries.embedding"].flatten(0, 1),
        "query_embed.weight": state["queries.position"].flatten(0, 1),
        "level_embed.weight": state["encoder.level"],
    }
    for i in range(recipe.decoder_layers):  # type: ignore[attr-defined]
        ours = f"decoder.layers.{i}"
        name = f"transformer_cross_attention_layers.{i}"
        theirs |= competes(state, f"{name}.multihead_attn", f"{ours}.cross_attention")
        theirs |= linears(state, f"{name}.norm", f"{ours}.norm2")
        name = f"transformer_self_attention_layers.{i}"
        theirs |= competes(state, f"{name}.self_attn", f"{ours}.self_attention")
        theirs |= linears(state, f"{name}.norm", f"{ours}.norm1")
        name = f"transformer_ffn_layers.{i}"
        theirs |= linears(state, f"{name}.linear1", f"{ours}.feed_forward.expand")
        theirs |= linears(state, f"{name}.linear2", f"{ours}.feed_forward.contract")
        theirs |= linears(state, f"{name}.norm", f"{ours}.norm3")
    head = "decoder.heads.0"
    theirs |= linears(state, "decoder_norm", "decoder.norm") | mlp(
        state, "mask_embed", f"{head}.embed", 3
    )
    return theirs | linears(state, "class_embed", f"{head}.classify", f"{head}.nothing")


def write_pickle(path: Path, state: Mapping[str, Tensor], protocol: int = 4) -> Path:
    """As detectron2 writes its model zoo."""
    arrays = {name: value.detach().numpy() for name, value in state.items()}
    content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    return path
