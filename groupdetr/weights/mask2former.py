"""The authors' checkpoints of Mask2Former for instances (github.com/facebookresearch/Mask2Former), R50, 558 tensors.

They are written by detectron2, as a pickle of numpy arrays, and say nothing beside the tensors. Older ones call the
queries otherwise, and have the parts of the pixel decoder right in the head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from groupdetr.checkpoints.layout import Facts, Layout, Names, within
from groupdetr.weights.deformable import ATTENTION
from groupdetr.weights.detectron2 import RESNET
from groupdetr.weights.detrex import categories

INPUTS: Names = {
    "in_proj_*": ("query.*", "key.*", "value.*"),
    "out_proj.*": "output.*",
}  # of torch's attention
CLASSIFY = "decoder.heads.0.classify."

ENCODER: Names = {
    **within(ATTENTION, "self_attn.", "attention."),
    "linear1.*": "feed_forward.expand.*",
    "linear2.*": "feed_forward.contract.*",
    "norm#.*": "norm#.*",
}  # of one layer

PIXELS: Names = {
    "input_proj.#.*": "encoder.encoder.project.levels.#.*",
    "transformer.level_embed": "encoder.encoder.level",
    **within(ENCODER, "transformer.encoder.layers.#.", "encoder.encoder.layers.#."),
    "adapter_1.norm.*": "encoder.lateral.1.*",
    "adapter_1.*": "encoder.lateral.0.*",
    "layer_1.norm.*": "encoder.smooth.1.*",
    "layer_1.*": "encoder.smooth.0.*",
    "mask_features.*": "encoder.pixels.*",
}  # of the pixel decoder

PREDICTOR: Names = {
    "query_feat.weight": "queries.embedding",
    "static_query.weight": "queries.embedding",  # in older files
    "query_embed.weight": "queries.position",
    "level_embed.weight": "encoder.level",
    # a norm belongs to what it follows, and ours are numbered as where queries compete first
    **within(
        INPUTS,
        "transformer_cross_attention_layers.#.multihead_attn.",
        "decoder.layers.#.cross_attention.",
    ),
    "transformer_cross_attention_layers.#.norm.*": "decoder.layers.#.norm2.*",
    **within(
        INPUTS, "transformer_self_attention_layers.#.self_attn.", "decoder.layers.#.self_attention."
    ),
    "transformer_self_attention_layers.#.norm.*": "decoder.layers.#.norm1.*",
    "transformer_ffn_layers.#.linear1.*": "decoder.layers.#.feed_forward.expand.*",
    "transformer_ffn_layers.#.linear2.*": "decoder.layers.#.feed_forward.contract.*",
    "transformer_ffn_layers.#.norm.*": "decoder.layers.#.norm3.*",
    "decoder_norm.*": "decoder.norm.*",
    "class_embed.*": f"{CLASSIFY}*",
    "mask_embed.layers.#.*": "decoder.heads.0.embed.layers.#.*",
}

NAMES: Names = {
    **dict.fromkeys(
        ("criterion.empty_weight", "pixel_mean", "pixel_std", "*.num_batches_tracked"), ()
    ),
    **RESNET,
    **within(PREDICTOR, "sem_seg_head.predictor.", ""),
    **within(PIXELS, "sem_seg_head.pixel_decoder.", ""),
    **within(PIXELS, "sem_seg_head.", ""),  # in older files
}


def options(facts: Facts) -> dict[str, Any]:
    """Files say none."""
    del facts
    return {}


def nothing_apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last row of their class head, no object, is a layer of its own here."""
    rows = {name.removeprefix(CLASSIFY): state[name] for name in state if name.startswith(CLASSIFY)}
    classes = {f"{CLASSIFY}{part}": value[:-1] for part, value in rows.items()}
    return (
        state
        | classes
        | {f"decoder.heads.0.nothing.{part}": value[-1:] for part, value in rows.items()}
    )


OFFICIAL_MASK2FORMER = Layout(
    "the authors' Mask2Former",
    lambda _: "mask2former-r50",
    ("sem_seg_head.predictor.query_embed.weight", "sem_seg_head.predictor.class_embed.weight"),
    NAMES,
    options,
    categories,
    nothing_apart,
)
