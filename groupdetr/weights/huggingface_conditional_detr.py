"""Hugging Face's `ConditionalDetrForObjectDetection`.

The tables have the names in its files, and the names of its modules in memory since version 5.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from groupdetr.checkpoints.layout import (
    IdAndName,
    Layout,
    Metadata,
    Names,
    RecipeFields,
    with_prefixes,
)
from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.weights.official_conditional_detr import DECODER, r50_or_dc5


def _resnet() -> Iterator[tuple[str, str]]:
    """Yield the names of transformers' own ResNet and torchvision's, inside the backbone.

    The backbone may also be timm's, whose names are torchvision's.
    """
    yield "embedder.embedder.convolution.*", "conv1.*"
    yield "embedder.embedder.normalization.*", "bn1.*"
    for stage in range(4):
        theirs, ours = f"encoder.stages.{stage}.layers.#", f"layer{stage + 1}.#"
        yield f"{theirs}.shortcut.convolution.*", f"{ours}.downsample.0.*"
        yield f"{theirs}.shortcut.normalization.*", f"{ours}.downsample.1.*"
        for layer in range(3):
            yield f"{theirs}.layer.{layer}.convolution.*", f"{ours}.conv{layer + 1}.*"
            yield f"{theirs}.layer.{layer}.normalization.*", f"{ours}.bn{layer + 1}.*"
    yield "*", "*"


RESNET: Names = dict(_resnet())

# One decoder layer, without the names that it shares with the authors' file.
LAYER: Names = {
    "self_attn.out_proj.*": "self_attention.output_proj.*",
    "encoder_attn.out_proj.*": "cross_attention.output_proj.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "self_attn_layer_norm.*": "norm1.*",
    "encoder_attn_layer_norm.*": "norm2.*",
    "final_layer_norm.*": "norm3.*",
}

# One decoder layer, as its modules are called in memory.
MODULE: Names = {
    "self_attn.q_content_proj.*": "self_attention.query_content_proj.*",
    "self_attn.q_pos_proj.*": "self_attention.query_pos_proj.*",
    "self_attn.k_content_proj.*": "self_attention.key_content_proj.*",
    "self_attn.k_pos_proj.*": "self_attention.key_pos_proj.*",
    "self_attn.v_proj.*": "self_attention.value_proj.*",
    "self_attn.o_proj.*": "self_attention.output_proj.*",
    "encoder_attn.q_content_proj.*": "cross_attention.query_content_proj.*",
    "encoder_attn.q_pos_proj.*": "cross_attention.query_pos_proj.*",
    "encoder_attn.k_content_proj.*": "cross_attention.key_content_proj.*",
    "encoder_attn.k_pos_proj.*": "cross_attention.key_pos_proj.*",
    "encoder_attn.q_pos_sine_proj.*": "cross_attention.query_sine_proj.*",
    "encoder_attn.v_proj.*": "cross_attention.value_proj.*",
    "encoder_attn.o_proj.*": "cross_attention.output_proj.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
}

# One encoder layer.
ENCODER: Names = {
    "self_attn.q_proj.*": "attention.query_proj.*",
    "self_attn.k_proj.*": "attention.key_proj.*",
    "self_attn.v_proj.*": "attention.value_proj.*",
    "self_attn.out_proj.*": "attention.output_proj.*",
    "self_attn.o_proj.*": "attention.output_proj.*",
    "self_attn_layer_norm.*": "norm1.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
    "activation_fn.weight": "feed_forward.activation.weight",  # DAB-DETR's PReLU
    "final_layer_norm.*": "norm2.*",
}

# Conditional DETR and DAB-DETR.
SHARED: Names = {
    "*.num_batches_tracked": (),
    "model.backbone.conv_encoder.model._backbone.*": "backbone.network.*",
    **with_prefixes(RESNET, "model.backbone.conv_encoder.model.", "backbone.network."),
    **with_prefixes(RESNET, "model.backbone.model.", "backbone.network."),
    "model.input_projection.*": "encoder.projection.*",
    **with_prefixes(ENCODER, "model.encoder.layers.#.", "encoder.layers.#."),
    "model.decoder.layernorm.*": "decoder.norm.*",
    "bbox_predictor.*": "decoder.heads.0.regress.*",
}

NAMES: Names = {
    **SHARED,
    "model.query_position_embeddings.weight": "queries.embedding",
    "model.decoder.ref_point_head.*": "queries.ref_point_head.*",
    **with_prefixes({**DECODER, **LAYER, **MODULE}, "model.decoder.layers.#.", "decoder.layers.#."),
    # All layers from layer 1 on share this module.
    "model.decoder.query_scale.*": "decoder.layers.1.cross_attention.query_sine_embed.scale.*",
    "class_labels_classifier.*": "decoder.heads.0.classify.*",
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that config.json gives."""
    config = file.metadata
    fields = {"encoder_attention_heads": "num_heads", "dropout": "dropout", "dilation": "dilated"}
    return {ours: config[theirs] for theirs, ours in fields.items() if theirs in config}


def categories(config: Metadata) -> list[IdAndName]:
    """Return the entries of ``id2label``, or [] if it only numbers the classes."""
    labels = sorted((int(row), str(name)) for row, name in config.get("id2label", {}).items())
    are_numbered = all(name.startswith("LABEL_") for _, name in labels)
    return [] if are_numbered else labels


HUGGING_FACE = Layout(
    title="Hugging Face's Conditional DETR",
    preset=partial(r50_or_dc5, "conditional-detr", "dilation"),
    signature=(
        "class_labels_classifier.weight",
        "bbox_predictor.layers.0.weight",
        "model.decoder.ref_point_head.*",
    ),
    names=NAMES,
    options=options,
    categories=categories,
)
