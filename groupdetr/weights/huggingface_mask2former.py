"""Hugging Face's `Mask2FormerForUniversalSegmentation` with a ResNet-50, transformers' own or timm's.

Its files have the names of its modules.
"""

from __future__ import annotations

from typing import Any

from groupdetr.checkpoints.layout import Facts, Layout, Names, within
from groupdetr.errors import WeightsError
from groupdetr.weights.deformable import ATTENTION
from groupdetr.weights.huggingface import RESNET, categories
from groupdetr.weights.mask2former import CLASSIFY, INPUTS, nothing_apart

ENCODER: Names = {
    **within(ATTENTION, "self_attn.", "attention."),
    "self_attn_layer_norm.*": "norm1.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "final_layer_norm.*": "norm2.*",
}  # of one layer

PIXELS: Names = {
    "input_projections.#.*": "encoder.encoder.project.levels.#.*",
    "level_embed": "encoder.encoder.level",
    **within(ENCODER, "encoder.layers.#.", "encoder.encoder.layers.#."),
    "adapter_1.*": "encoder.lateral.*",
    "layer_1.*": "encoder.smooth.*",
    "mask_projection.*": "encoder.pixels.*",
}  # of the pixel decoder

DECODER: Names = {
    **within(INPUTS, "cross_attn.", "cross_attention."),
    "cross_attn_layer_norm.*": "norm2.*",
    "self_attn.q_proj.*": "self_attention.query.*",
    "self_attn.k_proj.*": "self_attention.key.*",
    "self_attn.v_proj.*": "self_attention.value.*",
    "self_attn.out_proj.*": "self_attention.output.*",
    "self_attn_layer_norm.*": "norm1.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "final_layer_norm.*": "norm3.*",
}  # of one layer

TRANSFORMER: Names = {
    "queries_features.weight": "queries.embedding",
    "queries_embedder.weight": "queries.position",
    "level_embed.weight": "encoder.level",
    **within(DECODER, "decoder.layers.#.", "decoder.layers.#."),
    "decoder.layernorm.*": "decoder.norm.*",
    "decoder.mask_predictor.mask_embedder.#.0.*": "decoder.heads.0.embed.layers.#.*",
}

NAMES: Names = {
    **dict.fromkeys(("criterion.empty_weight", "*.num_batches_tracked"), ()),
    "model.pixel_level_module.encoder._backbone.*": "backbone.network.*",
    **within(RESNET, "model.pixel_level_module.encoder.", "backbone.network."),
    **within(PIXELS, "model.pixel_level_module.decoder.", ""),
    **within(TRANSFORMER, "model.transformer_module.", ""),
    "class_predictor.*": f"{CLASSIFY}*",
}

HERE = {"pre_norm": False, "activation_function": "relu"}  # that no tensor shows


def options(config: Facts) -> dict[str, Any]:
    """From config.json; WeightsError if it asks for another transformer than ours."""
    for name, ours in HERE.items():
        if config.get(name, ours) != ours:
            raise WeightsError(
                f"{name} is {config[name]!r} in the configuration, and here always {ours!r}"
            )
    names = {"num_attention_heads": "num_heads", "dropout": "dropout"}
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


HUGGING_FACE_MASK2FORMER = Layout(
    "Hugging Face's Mask2Former",
    lambda _: "mask2former-r50",
    ("model.transformer_module.queries_features.weight", "class_predictor.weight"),
    NAMES,
    options,
    categories,
    nothing_apart,
)
