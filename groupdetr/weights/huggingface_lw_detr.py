"""Hugging Face's `LwDetrForObjectDetection`.

The names are those in its files. Those of its modules in memory are only read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

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
from groupdetr.weights import huggingface_conditional_detr
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.huggingface_conditional_detr import configuration
from groupdetr.weights.metadata_fields import expect_values, named_fields
from groupdetr.weights.official_deformable import ATTENTION
from groupdetr.weights.official_lw_detr import PROPOSALS, other_blocks, preset, with_num_points
from groupdetr.weights.windowed_vit_sizes import integers, sizes_of_network

# One block of the Vision Transformer, as in its files
BLOCK: Names = {
    "layernorm_before.*": "norm1.*",
    "layernorm_after.*": "norm2.*",
    "attention.attention.query.*": "attention.query_proj.*",
    "attention.attention.key.*": "attention.key_proj.*",
    "attention.attention.value.*": "attention.value_proj.*",
    "attention.output.*": "attention.output_proj.*",
    "gamma_1": "layer_scale1",
    "gamma_2": "layer_scale2",
    "intermediate.fc1.*": "feed_forward.expand.*",
    "intermediate.fc2.*": "feed_forward.contract.*",
}

# The attention of a block, as its modules are called in memory
ATTENTION_MODULE: Names = {
    "attention.q_proj.*": "attention.query_proj.*",
    "attention.k_proj.*": "attention.key_proj.*",
    "attention.v_proj.*": "attention.value_proj.*",
    "attention.o_proj.*": "attention.output_proj.*",
}

# The block of convolutions of a level of the projector
C2F: Names = {
    "projector_layer.conv#.*": "c2f.conv#.*",
    "projector_layer.bottlenecks.#.conv#.*": "c2f.bottlenecks.#.conv#.*",
    "layer_norm.*": "norm.*",
}

# The projector; see `official_lw_detr.PROJECTOR`
PROJECTOR: Names = {
    "scale_layers.0.sampling_layers.#.layers.0.conv.*": "levels.0.resample.#.reduce.conv.*",
    "scale_layers.0.sampling_layers.#.layers.0.norm.*": "levels.0.resample.#.reduce.norm.*",
    "scale_layers.0.sampling_layers.#.layers.1.*": "levels.0.resample.#.upsample.*",
    "scale_layers.#.sampling_layers.#.layers.0.conv.*": "levels.#.resample.#.downsample.conv.*",
    "scale_layers.#.sampling_layers.#.layers.0.norm.*": "levels.#.resample.#.downsample.norm.*",
    "scale_layers.#.sampling_layers.#.layers.0.*": "levels.#.resample.#.upsample.*",
    **with_prefixes(C2F, "scale_layers.#.", "levels.#."),
}

# One decoder layer
DECODER: Names = {
    "self_attn.q_proj.*": "self_attention.query_proj.*",
    "self_attn.k_proj.*": "self_attention.key_proj.*",
    "self_attn.v_proj.*": "self_attention.value_proj.*",
    "self_attn.o_proj.*": "self_attention.output_proj.*",
    **with_prefixes(ATTENTION, "cross_attn.", "cross_attention."),
    "mlp.fc1.*": "feed_forward.expand.*",
    "mlp.fc2.*": "feed_forward.contract.*",
    "self_attn_layer_norm.*": "norm1.*",
    "cross_attn_layer_norm.*": "norm2.*",
    "layer_norm.*": "norm3.*",
}

# Everything but the backbone and the projector
SHARED: Names = {
    "*.num_batches_tracked": (),
    **with_prefixes(DECODER, "model.decoder.layers.#.", "decoder.layers.#."),
    "model.decoder.layernorm.*": "decoder.norm.*",
    "model.decoder.ref_point_head.*": "decoder.position_embeddings.0.mlp.*",
    **with_prefixes(PROPOSALS, "model.", ""),
    "model.reference_point_embed.weight": "queries.learned_offset",
    "model.query_feat.weight": "queries.embedding",
    "class_embed.*": "decoder.heads.0.classify.*",
    "bbox_embed.*": "decoder.heads.0.regress.*",
}

BLOCKS = "model.backbone.backbone.encoder.layer.#."
NAMES: Names = {
    **SHARED,
    "model.backbone.backbone.embeddings.position_embeddings": "backbone.network.embed.position",
    "model.backbone.backbone.embeddings.projection.*": "backbone.network.embed.patch_conv.*",
    **with_prefixes(BLOCK, BLOCKS, "backbone.network.blocks.#."),
    **with_prefixes(PROJECTOR, "model.backbone.projector.", "encoder."),
}

# Entries of config.json that no tensor shows, and the values of our network
REQUIRED = {"activation_function": "silu", "decoder_activation_function": "relu"}
REQUIRED_OF_VIT = {"hidden_act": "gelu"}
# Other entries -> recipe fields that no tensor shows
FIELDS = {
    "decoder_self_attention_heads": "num_heads",
    "decoder_cross_attention_heads": "cross_attention_heads",
}
# Other entries -> recipe fields. They follow from the tensors, so they are only written.
SIZES = {
    "d_model": "channels",
    "decoder_layers": "decoder_layers",
    "decoder_ffn_dim": "dim_feedforward",
    "decoder_n_points": "num_points",
    "num_queries": "num_queries",
    "group_detr": "num_groups",
}
# A level of the projector -> its size over that of the backbone's maps
SCALES = {"P3": 2.0, "P4": 1.0, "P5": 0.5}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the tensors and config.json give.

    `WeightsError` if it is the configuration of another network than ours.
    """
    config = file.metadata
    expect_values({**REQUIRED, "batch_norm_eps": 1e-5}, config, file.where)
    expect_values(REQUIRED_OF_VIT, config.get("backbone_config", {}), file.where)
    fields = {
        **sizes_of_network(file.state),
        **named_fields(FIELDS, config),
    }
    vit = config.get("backbone_config", {})
    if "num_attention_heads" in vit:
        fields["vit_heads"] = vit["num_attention_heads"]
    if "num_windows" in vit:
        fields["num_windows"] = round(vit["num_windows"] ** 0.5)  # all of the image
    if "out_indices" in vit:
        fields["map_blocks"] = tuple(number - 1 for number in integers(vit["out_indices"]))
    if "window_block_indices" in vit:
        windowed = integers(vit["window_block_indices"])
        fields["global_blocks"] = other_blocks(windowed, fields["vit_depth"])
    return with_num_points(fields, file)


def categories(config: Metadata) -> list[IdAndName]:
    """Return the entries of ``id2label``. 91 rows that are only numbered are COCO's ids."""
    labels = huggingface_conditional_detr.categories(config)
    if not labels and len(config.get("id2label", {})) == len(COCO_91):
        return list(enumerate(COCO_91))
    return labels


def is_written(name: str, state: Mapping[str, Tensor]) -> bool:
    """True for the name of the transposed convolution that the detector has, and for all others."""
    upsample = re.fullmatch(r".*\.scale_layers\.0\.sampling_layers\.(\d+)\.layers\.(\d)\.\w+", name)
    if upsample is None:
        return True
    is_reduced = f"encoder.levels.0.resample.{upsample[1]}.reduce.conv.weight" in state
    return upsample[2] == ("1" if is_reduced else "0")


def describe(description: Description) -> dict[str, Any]:
    """Return the content of config.json."""
    fields = description.fields
    config = configuration("lw_detr", "LwDetrForObjectDetection", {**FIELDS, **SIZES}, description)
    patch = fields["strides"][0]
    return config | {
        "projector_scale_factors": [SCALES[level] for level in fields["projector_levels"]],
        "backbone_config": {
            "model_type": "lw_detr_vit",
            "hidden_size": fields["vit_width"],
            "num_hidden_layers": fields["vit_depth"],
            "num_attention_heads": fields["vit_heads"],
            "patch_size": patch,
            # Its own code builds no table of positions with it.
            "image_size": 1024,
            "pretrain_image_size": patch * fields["position_grid"],
            "num_windows": fields["num_windows"] ** 2,
            "window_block_indices": list(
                other_blocks(fields["global_blocks"], fields["vit_depth"])
            ),
            "out_indices": [block + 1 for block in fields["map_blocks"]],
        },
    }


HUGGING_FACE_LW_DETR = Layout(
    title="Hugging Face's LW-DETR",
    preset=preset,
    signature=(
        "model.backbone.backbone.embeddings.projection.weight",
        "model.backbone.projector.scale_layers.#.*",
        "model.enc_output.#.weight",
        "model.query_feat.weight",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    also_read=with_prefixes(ATTENTION_MODULE, BLOCKS, "backbone.network.blocks.#."),
    is_written=is_written,
    describe=describe,
)
