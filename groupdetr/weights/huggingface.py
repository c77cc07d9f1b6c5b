"""Hugging Face's `ConditionalDetrForObjectDetection`: as its files name things, and as its modules do since 5.0."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from groupdetr.checkpoints.layout import Category, Facts, Layout, Names, within
from groupdetr.weights.conditional_detr import DECODER, r50_or_dc5


def _resnet() -> Iterator[tuple[str, str]]:
    """transformers' own ResNet to torchvision's names, within the backbone. Its weights may also be timm's."""
    yield "embedder.embedder.convolution.*", "conv1.*"
    yield "embedder.embedder.normalization.*", "bn1.*"
    for stage in range(4):
        block, ours = f"encoder.stages.{stage}.layers.#", f"layer{stage + 1}.#"
        yield f"{block}.shortcut.convolution.*", f"{ours}.downsample.0.*"
        yield f"{block}.shortcut.normalization.*", f"{ours}.downsample.1.*"
        for layer in range(3):
            yield f"{block}.layer.{layer}.convolution.*", f"{ours}.conv{layer + 1}.*"
            yield f"{block}.layer.{layer}.normalization.*", f"{ours}.bn{layer + 1}.*"
    yield "*", "*"  # timm's names are torchvision's


RESNET: Names = dict(_resnet())

LAYER: Names = {
    "self_attn.out_proj.*": "self_attention.output.*",
    "encoder_attn.out_proj.*": "cross_attention.output.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "self_attn_layer_norm.*": "norm1.*",
    "encoder_attn_layer_norm.*": "norm2.*",
    "final_layer_norm.*": "norm3.*",
}  # of one decoder layer, beside those it has from the authors

MODULE: Names = {
    "self_attn.q_content_proj.*": "self_attention.query_content.*",
    "self_attn.q_pos_proj.*": "self_attention.query_position.*",
    "self_attn.k_content_proj.*": "self_attention.key_content.*",
    "self_attn.k_pos_proj.*": "self_attention.key_position.*",
    "self_attn.v_proj.*": "self_attention.value.*",
    "self_attn.o_proj.*": "self_attention.output.*",
    "encoder_attn.q_content_proj.*": "cross_attention.query_content.*",
    "encoder_attn.q_pos_proj.*": "cross_attention.query_position.*",
    "encoder_attn.k_content_proj.*": "cross_attention.key_content.*",
    "encoder_attn.k_pos_proj.*": "cross_attention.key_place.*",
    "encoder_attn.q_pos_sine_proj.*": "cross_attention.query_place.*",
    "encoder_attn.v_proj.*": "cross_attention.value.*",
    "encoder_attn.o_proj.*": "cross_attention.output.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
}  # the same, as the modules are called in memory

ENCODER: Names = {
    "self_attn.q_proj.*": "attention.query.*",
    "self_attn.k_proj.*": "attention.key.*",
    "self_attn.v_proj.*": "attention.value.*",
    "self_attn.out_proj.*": "attention.output.*",
    "self_attn.o_proj.*": "attention.output.*",
    "self_attn_layer_norm.*": "norm1.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
    "activation_fn.weight": "feed_forward.activation.weight",  # DAB-DETR's PReLU
    "final_layer_norm.*": "norm2.*",
}  # of one encoder layer

SHARED: Names = {
    "*.num_batches_tracked": (),
    "model.backbone.conv_encoder.model._backbone.*": "backbone.network.*",
    **within(RESNET, "model.backbone.conv_encoder.model.", "backbone.network."),
    **within(RESNET, "model.backbone.model.", "backbone.network."),
    "model.input_projection.*": "encoder.projection.*",
    **{
        f"model.encoder.layers.#.{theirs}": f"encoder.layers.#.{ours}"
        for theirs, ours in ENCODER.items()
    },
    "model.decoder.layernorm.*": "decoder.norm.*",
    "bbox_predictor.*": "decoder.heads.0.regress.*",
}  # with those of DAB-DETR

NAMES: Names = {
    **SHARED,
    "model.query_position_embeddings.weight": "queries.embedding",
    "model.decoder.ref_point_head.*": "queries.point.*",
    **{
        f"model.decoder.layers.#.{theirs}": f"decoder.layers.#.{ours}"
        for theirs, ours in {**DECODER, **LAYER, **MODULE}.items()
    },
    "model.decoder.query_scale.*": "decoder.layers.1.cross_attention.aim.scale.*",  # shared from layer 1 on
    "class_labels_classifier.*": "decoder.heads.0.classify.*",
}


def options(config: Facts) -> dict[str, Any]:
    """From config.json."""
    names = {"encoder_attention_heads": "num_heads", "dropout": "dropout", "dilation": "dilated"}
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def categories(config: Facts) -> list[Category]:
    """``id2label``, unless it only numbers the classes."""
    labels = sorted((int(row), str(name)) for row, name in config.get("id2label", {}).items())
    return [] if all(name.startswith("LABEL_") for _, name in labels) else labels


HUGGING_FACE = Layout(
    "Hugging Face's Conditional DETR",
    partial(r50_or_dc5, "conditional-detr", "dilation"),
    (
        "class_labels_classifier.weight",
        "bbox_predictor.layers.0.weight",
        "model.decoder.ref_point_head.*",
    ),
    NAMES,
    options,
    categories,
)
