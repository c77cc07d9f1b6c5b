"""Hugging Face's `Mask2FormerForUniversalSegmentation` with a ResNet-50.

The backbone is transformers' own or timm's. The names in its files are those of its modules.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Description, Layout, Names, RecipeFields, with_prefixes
from groupdetr.weights.huggingface_conditional_detr import (
    RESNET,
    categories,
    configuration,
)
from groupdetr.weights.metadata_fields import expect_values, named_fields
from groupdetr.weights.official_deformable import ATTENTION
from groupdetr.weights.official_mask2former import (
    CLASSIFY,
    INPUTS,
    join_no_object,
    split_no_object,
    with_class_weights,
)

# One encoder layer.
ENCODER: Names = {
    **with_prefixes(ATTENTION, "self_attn.", "attention."),
    "self_attn_layer_norm.*": "norm1.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "final_layer_norm.*": "norm2.*",
}

# The pixel decoder.
PIXELS: Names = {
    "input_projections.#.*": "encoder.encoder.project.levels.#.*",
    "level_embed": "encoder.encoder.level_embed",
    **with_prefixes(ENCODER, "encoder.layers.#.", "encoder.encoder.layers.#."),
    "adapter_1.*": "encoder.lateral.*",
    "layer_1.*": "encoder.smooth.*",
    "mask_projection.*": "encoder.pixels.*",
}

# One decoder layer.
DECODER: Names = {
    **with_prefixes(INPUTS, "cross_attn.", "cross_attention."),
    "cross_attn_layer_norm.*": "norm2.*",
    "self_attn.q_proj.*": "self_attention.query_proj.*",
    "self_attn.k_proj.*": "self_attention.key_proj.*",
    "self_attn.v_proj.*": "self_attention.value_proj.*",
    "self_attn.out_proj.*": "self_attention.output_proj.*",
    "self_attn_layer_norm.*": "norm1.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "final_layer_norm.*": "norm3.*",
}

TRANSFORMER: Names = {
    "queries_features.weight": "queries.embedding",
    "queries_embedder.weight": "queries.position",
    "level_embed.weight": "encoder.level_embed",
    **with_prefixes(DECODER, "decoder.layers.#.", "decoder.layers.#."),
    "decoder.layernorm.*": "decoder.norm.*",
    "decoder.mask_predictor.mask_embedder.#.0.*": "decoder.heads.0.embed.layers.#.*",
}

NAMES: Names = {
    **dict.fromkeys(("criterion.empty_weight", "*.num_batches_tracked"), ()),
    "model.pixel_level_module.encoder._backbone.*": "backbone.network.*",
    **with_prefixes(PIXELS, "model.pixel_level_module.decoder.", ""),
    **with_prefixes(TRANSFORMER, "model.transformer_module.", ""),
    "class_predictor.*": f"{CLASSIFY}*",
}

# The names of transformers' own ResNet.
ALSO_READ: Names = {
    "*.num_batches_tracked": (),
    **with_prefixes(RESNET, "model.pixel_level_module.encoder.", "backbone.network."),
}

# Fields of config.json that do not follow from the tensors, and the values of our transformer.
REQUIRED = {"pre_norm": False, "activation_function": "relu"}
# Entries of config.json -> recipe fields that no tensor shows
FIELDS = {"num_attention_heads": "num_heads", "dropout": "dropout"}
# Other entries -> recipe fields. They follow from the tensors, so they are only written.
SIZES = {
    "hidden_dim": "channels",
    "feature_size": "channels",
    "mask_feature_size": "channels",
    "num_queries": "num_queries",
    "encoder_layers": "encoder_layers",
    "encoder_feedforward_dim": "encoder_dim_feedforward",
    "dim_feedforward": "dim_feedforward",
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that config.json gives.

    `WeightsError` if it is the configuration of another transformer than ours.
    """
    expect_values(REQUIRED, file.metadata, file.where)
    return named_fields(FIELDS, file.metadata)


def describe(description: Description) -> dict[str, Any]:
    """Return the content of config.json.

    Their number of decoder layers counts the predictions, of which one is before the first layer.
    """
    names = {**FIELDS, **SIZES}
    architecture = "Mask2FormerForUniversalSegmentation"
    config = configuration("mask2former", architecture, names, description)
    return {**config, **REQUIRED, "decoder_layers": description.fields["decoder_layers"] + 1}


HUGGING_FACE_MASK2FORMER = Layout(
    title="Hugging Face's Mask2Former",
    preset=lambda _: "mask2former-r50",
    signature=("model.transformer_module.queries_features.weight", "class_predictor.weight"),
    names=NAMES,
    options=options,
    categories=categories,
    complete=split_no_object,
    also_read=ALSO_READ,
    undo_complete=join_no_object,
    add_dropped=partial(with_class_weights, "class_predictor"),
    describe=describe,
)
