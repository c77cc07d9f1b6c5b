"""Hugging Face's `ConditionalDetrForObjectDetection`.

The names are those in its files, which its versions 4 and 5 read. The names of its modules in
memory since version 5.0 are only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import (
    Description,
    IdAndName,
    Layout,
    Metadata,
    Names,
    RecipeFields,
    with_prefixes,
)
from groupdetr.weights.metadata_fields import expect_values, named_fields, r50_or_dc5
from groupdetr.weights.official_conditional_detr import DECODER


def _resnet() -> Iterator[tuple[str, str]]:
    """Yield the names of transformers' own ResNet and torchvision's, inside the backbone."""
    yield "embedder.embedder.convolution.*", "conv1.*"
    yield "embedder.embedder.normalization.*", "bn1.*"
    for stage in range(4):
        theirs, ours = f"encoder.stages.{stage}.layers.#", f"layer{stage + 1}.#"
        yield f"{theirs}.shortcut.convolution.*", f"{ours}.downsample.0.*"
        yield f"{theirs}.shortcut.normalization.*", f"{ours}.downsample.1.*"
        for layer in range(3):
            yield f"{theirs}.layer.{layer}.convolution.*", f"{ours}.conv{layer + 1}.*"
            yield f"{theirs}.layer.{layer}.normalization.*", f"{ours}.bn{layer + 1}.*"


RESNET: Names = dict(_resnet())
# The names of timm's ResNet, which are torchvision's.
TIMM: Names = {"*": "*"}

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
    "self_attn_layer_norm.*": "norm1.*",
    "fc1.*": "feed_forward.expand.*",
    "fc2.*": "feed_forward.contract.*",
    "activation_fn.weight": "feed_forward.activation.weight",  # DAB-DETR's PReLU
    "final_layer_norm.*": "norm2.*",
}

# One encoder layer of Conditional DETR, as its modules are called in memory.
ENCODER_MODULE: Names = {
    "self_attn.o_proj.*": "attention.output_proj.*",
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
}

# Conditional DETR and DAB-DETR.
SHARED: Names = {
    "*.num_batches_tracked": (),
    "model.input_projection.*": "encoder.projection.*",
    **with_prefixes(ENCODER, "model.encoder.layers.#.", "encoder.layers.#."),
    "model.decoder.layernorm.*": "decoder.norm.*",
    "bbox_predictor.*": "decoder.heads.0.regress.*",
}

ALSO_READ: Names = {
    "*.num_batches_tracked": (),
    "model.backbone.conv_encoder.model._backbone.*": "backbone.network.*",
    **with_prefixes(RESNET, "model.backbone.conv_encoder.model.", "backbone.network."),
    **with_prefixes(RESNET, "model.backbone.model.", "backbone.network."),
    **with_prefixes(TIMM, "model.backbone.model.", "backbone.network."),
    **with_prefixes(ENCODER_MODULE, "model.encoder.layers.#.", "encoder.layers.#."),
}

NAMES: Names = {
    **SHARED,
    **with_prefixes(TIMM, "model.backbone.conv_encoder.model.", "backbone.network."),
    "model.query_position_embeddings.weight": "queries.embedding",
    "model.decoder.ref_point_head.*": "queries.ref_point_head.*",
    **with_prefixes({**DECODER, **LAYER}, "model.decoder.layers.#.", "decoder.layers.#."),
    # All layers from layer 1 on share this module.
    "model.decoder.query_scale.*": "decoder.layers.1.cross_attention.query_sine_embed.scale.*",
    "class_labels_classifier.*": "decoder.heads.0.classify.*",
}


# Entries of config.json -> recipe fields that no tensor shows
FIELDS = {"encoder_attention_heads": "num_heads", "dropout": "dropout", "dilation": "dilated"}
# Other entries -> recipe fields. They follow from the tensors, so they are only written.
SIZES = {
    "decoder_attention_heads": "num_heads",
    "num_queries": "num_queries",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_ffn_dim": "dim_feedforward",
    "decoder_ffn_dim": "dim_feedforward",
}
# The entry of this library in the metadata that it writes
OWN = "groupdetr"
# The recipe fields there: those of the backbone, and others that the code of others does not have.
PRESET = "preset"  # beside them
OWN_FIELDS = ("backbone", "strides", "freeze_norms", "num_detections", "square_images")


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that config.json gives.

    `WeightsError` if it is the configuration of another transformer than ours.
    """
    expect_values({"activation_function": "relu"}, file.metadata, file.where)
    return transformer_options(file)


def transformer_options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that config.json of Conditional DETR and of DAB-DETR gives.

    `WeightsError` if the attentions of the decoder have another number of heads than the encoder's.
    """
    fields = named_fields(FIELDS, file.metadata)
    if "num_heads" in fields:
        heads = {"decoder_attention_heads": fields["num_heads"]}
        expect_values(heads, file.metadata, file.where)
    return fields


def own_fields(metadata: Metadata) -> RecipeFields:
    """Return the recipe fields that this library wrote to the metadata, {} if it did not."""
    own = metadata.get(OWN, {})
    return {name: own[name] for name in OWN_FIELDS if name in own}


def own_entry(fields: RecipeFields) -> dict[str, Any]:
    """Return what this library writes to the metadata. ``fields`` are those of a recipe."""
    return {OWN: {name: fields[name] for name in (PRESET, *OWN_FIELDS)}}


def own_preset(metadata: Metadata) -> str | None:
    """Return the preset that this library wrote to the metadata, None if it did not."""
    preset = metadata.get(OWN, {}).get(PRESET)
    return preset if isinstance(preset, str) and preset else None


def categories(config: Metadata) -> list[IdAndName]:
    """Return the entries of ``id2label``, or [] if it only numbers the classes.

    Their ids are the rows of the class head, unless this library wrote the original ones.
    """
    labels = sorted((int(row), str(name)) for row, name in config.get("id2label", {}).items())
    are_numbered = all(name.startswith("LABEL_") for _, name in labels)
    ids = config.get(OWN, {}).get("category_ids")
    if ids is not None and len(ids) == len(labels):
        return [(id, name) for id, (_, name) in zip(ids, labels)]
    return [] if are_numbered else labels


def configuration(
    model_type: str, architecture: str, names: Mapping[str, str], description: Description
) -> dict[str, Any]:
    """Return the content of config.json. ``names``: its entries -> recipe fields.

    It has the classes and the size of the images, too, and under the name of this library what only
    an import into it needs.
    """
    fields = description.fields
    labels = [name for _, name in description.categories]
    return {
        "model_type": model_type,
        "architectures": [architecture],
        **{theirs: fields[ours] for theirs, ours in names.items()},
        "id2label": {str(row): name for row, name in enumerate(labels)},
        "label2id": {name: row for row, name in enumerate(labels)},
        "imgsz": description.imgsz,
        OWN: {
            "category_ids": [id for id, _ in description.categories],
            **own_entry(fields)[OWN],
        },
    }


def describe(description: Description) -> dict[str, Any]:
    """Return the content of config.json."""
    names = {**FIELDS, **SIZES, "d_model": "channels"}
    architecture = "ConditionalDetrForObjectDetection"
    return configuration("conditional_detr", architecture, names, description)


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
    also_read={
        **ALSO_READ,
        **with_prefixes(MODULE, "model.decoder.layers.#.", "decoder.layers.#."),
    },
    describe=describe,
)
