"""Hugging Face's `DabDetrForObjectDetection`.

Their code clamps the inverse sigmoid at 1e-5, the authors' at 1e-3: an import takes theirs along, so that it answers
as they do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from groupdetr.checkpoints.layout import Facts, Layout, Names
from groupdetr.weights.conditional_detr import r50_or_dc5
from groupdetr.weights.dab_detr import temperature
from groupdetr.weights.huggingface import SHARED, categories
from groupdetr.weights.huggingface import options as conditional_options

LAYER: Names = {
    "self_attn.self_attn_query_content_proj.*": "self_attention.query_content.*",
    "self_attn.self_attn_query_pos_proj.*": "self_attention.query_position.*",
    "self_attn.self_attn_key_content_proj.*": "self_attention.key_content.*",
    "self_attn.self_attn_key_pos_proj.*": "self_attention.key_position.*",
    "self_attn.self_attn_value_proj.*": "self_attention.value.*",
    "self_attn.self_attn.output_proj.*": "self_attention.output.*",
    "self_attn.self_attn_layer_norm.*": "norm1.*",
    "cross_attn.cross_attn_query_content_proj.*": "cross_attention.query_content.*",
    "cross_attn.cross_attn_query_pos_proj.*": "cross_attention.query_position.*",  # of layer 0 alone
    "cross_attn.cross_attn_key_content_proj.*": "cross_attention.key_content.*",
    "cross_attn.cross_attn_key_pos_proj.*": "cross_attention.key_place.*",
    "cross_attn.cross_attn_query_pos_sine_proj.*": "cross_attention.query_place.*",
    "cross_attn.cross_attn_value_proj.*": "cross_attention.value.*",
    "cross_attn.cross_attn.output_proj.*": "cross_attention.output.*",
    "cross_attn.cross_attn_layer_norm.*": "norm2.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
    "mlp.activation_fn.weight": "feed_forward.activation.weight",
    "mlp.final_layer_norm.*": "norm3.*",
}  # of one decoder layer

NAMES: Names = {
    "model.decoder.bbox_embed.*": (),  # bbox_predictor under a second name
    **SHARED,
    "model.encoder.query_scale.*": "encoder.place.scale.*",
    **{
        f"model.decoder.layers.#.{theirs}": f"decoder.layers.#.{ours}"
        for theirs, ours in LAYER.items()
    },
    "model.decoder.ref_point_head.*": "decoder.places.0.mlp.*",
    "model.decoder.ref_anchor_head.*": "decoder.layers.0.cross_attention.aim.size.*",
    "model.decoder.query_scale.*": "decoder.layers.1.cross_attention.aim.point.scale.*",  # shared from layer 1 on
    "model.query_refpoint_embeddings.weight": "queries.anchors",
    "model.patterns.weight": "queries.patterns",
    "class_embed.*": "decoder.heads.0.classify.*",
}


def options(config: Facts) -> dict[str, Any]:
    """From config.json."""
    told = temperature(config, "temperature_height", "temperature_width")
    return {**conditional_options(config), **told, "eps": 1e-5}


HUGGING_FACE_DAB = Layout(
    "Hugging Face's DAB-DETR",
    partial(r50_or_dc5, "dab-detr", "dilation"),
    ("class_embed.weight", "bbox_predictor.layers.0.weight", "model.decoder.ref_anchor_head.*"),
    NAMES,
    options,
    categories,
)
