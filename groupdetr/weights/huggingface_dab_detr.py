"""Hugging Face's `DabDetrForObjectDetection`.

Their code clamps the inverse sigmoid at 1e-5, the authors' code at 1e-3. An import uses their
value, so the predictions are the same as theirs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Description, Layout, Names, RecipeFields, with_prefixes
from groupdetr.weights.huggingface_conditional_detr import (
    ALSO_READ,
    FIELDS,
    SHARED,
    SIZES,
    TIMM,
    categories,
    configuration,
    transformer_options,
)
from groupdetr.weights.metadata_fields import expect_values, r50_or_dc5
from groupdetr.weights.official_dab_detr import temperature

# One decoder layer.
LAYER: Names = {
    "self_attn.self_attn_query_content_proj.*": "self_attention.query_content_proj.*",
    "self_attn.self_attn_query_pos_proj.*": "self_attention.query_pos_proj.*",
    "self_attn.self_attn_key_content_proj.*": "self_attention.key_content_proj.*",
    "self_attn.self_attn_key_pos_proj.*": "self_attention.key_pos_proj.*",
    "self_attn.self_attn_value_proj.*": "self_attention.value_proj.*",
    "self_attn.self_attn.output_proj.*": "self_attention.output_proj.*",
    "self_attn.self_attn_layer_norm.*": "norm1.*",
    "cross_attn.cross_attn_query_content_proj.*": "cross_attention.query_content_proj.*",
    "cross_attn.cross_attn_query_pos_proj.*": "cross_attention.query_pos_proj.*",  # layer 0 only
    "cross_attn.cross_attn_key_content_proj.*": "cross_attention.key_content_proj.*",
    "cross_attn.cross_attn_key_pos_proj.*": "cross_attention.key_pos_proj.*",
    "cross_attn.cross_attn_query_pos_sine_proj.*": "cross_attention.query_sine_proj.*",
    "cross_attn.cross_attn_value_proj.*": "cross_attention.value_proj.*",
    "cross_attn.cross_attn.output_proj.*": "cross_attention.output_proj.*",
    "cross_attn.cross_attn_layer_norm.*": "norm2.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
    "mlp.activation_fn.weight": "feed_forward.activation.weight",
    "mlp.final_layer_norm.*": "norm3.*",
}

NAMES: Names = {
    "model.decoder.bbox_embed.*": (),  # a second name of bbox_predictor
    **SHARED,
    "model.backbone.conv_encoder.model._backbone.*": "backbone.network.*",
    "model.encoder.query_scale.*": "encoder.position_embedding.scale.*",
    **with_prefixes(LAYER, "model.decoder.layers.#.", "decoder.layers.#."),
    "model.decoder.ref_point_head.*": "decoder.position_embeddings.0.mlp.*",
    "model.decoder.ref_anchor_head.*": "decoder.layers.0.cross_attention.query_sine_embed.size.*",
    # All layers from layer 1 on share this module.
    "model.decoder.query_scale.*": (
        "decoder.layers.1.cross_attention.query_sine_embed.point.scale.*"
    ),
    "model.query_refpoint_embeddings.weight": "queries.anchors",
    "model.patterns.weight": "queries.patterns",
    "class_embed.*": "decoder.heads.0.classify.*",
}


# The entries for the temperature of height and of width, which is one field of a recipe
TEMPERATURES = ("temperature_height", "temperature_width")
# The entry for the factor of coordinates in the image's position embedding; null is 2 pi
SCALE = "sine_position_embedding_scale"
EPS = 1e-5  # where their inverse sigmoid is clamped


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that config.json gives, and the clamp of the inverse sigmoid.

    `WeightsError` if it is the configuration of another transformer than ours.
    """
    expect_values({"activation_function": "prelu"}, file.metadata, file.where)
    if file.metadata.get(SCALE) is not None:
        expect_values({SCALE: 2 * math.pi}, file.metadata, file.where)
    return {**transformer_options(file), **temperature(file, *TEMPERATURES), "eps": EPS}


def describe(description: Description) -> dict[str, Any]:
    """Return the content of config.json, where temperatures are whole numbers."""
    names = {**FIELDS, **SIZES, "hidden_size": "channels", "num_patterns": "num_patterns"}
    config = configuration("dab-detr", "DabDetrForObjectDetection", names, description)
    return {**config, **dict.fromkeys(TEMPERATURES, int(description.fields["temperature"]))}


HUGGING_FACE_DAB = Layout(
    title="Hugging Face's DAB-DETR",
    preset=partial(r50_or_dc5, "dab-detr", "dilation"),
    signature=(
        "class_embed.weight",
        "bbox_predictor.layers.0.weight",
        "model.decoder.ref_anchor_head.*",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    also_read={
        **ALSO_READ,
        **with_prefixes(TIMM, "model.backbone.conv_encoder.model.", "backbone.network."),
    },
    describe=describe,
)
