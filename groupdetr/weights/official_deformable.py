"""The authors' checkpoints of DAB-Deformable-DETR and DINO (github.com/IDEA-Research)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Description, Layout, Names, RecipeFields, with_prefixes
from groupdetr.modeling.backbones.registry import SWIN_LARGE
from groupdetr.modeling.backbones.swin_names import DINO_SWIN
from groupdetr.weights.metadata_fields import expect_values, named_fields
from groupdetr.weights.official_dab_detr import TEMPERATURES, named_values, temperature
from groupdetr.weights.script_arguments import SIZES, arguments, categories

# Deformable attention.
ATTENTION: Names = {
    "sampling_offsets.*": "sampling_offsets.*",
    "attention_weights.*": "attention_weights.*",
    "value_proj.*": "value_proj.*",
    "output_proj.*": "output_proj.*",
}
LAYERS = range(12)  # more decoder layers than any of their models has

SHARED: Names = {
    "*.num_batches_tracked": (),
    "backbone.0.body.*": "backbone.network.*",
    **DINO_SWIN,
    "input_proj.#.*": "encoder.project.levels.#.*",
    "transformer.level_embed": "encoder.level_embed",
    **with_prefixes(
        ATTENTION, "transformer.encoder.layers.#.self_attn.", "encoder.layers.#.attention."
    ),
    "transformer.encoder.layers.#.linear1.*": "encoder.layers.#.feed_forward.expand.*",
    "transformer.encoder.layers.#.linear2.*": "encoder.layers.#.feed_forward.contract.*",
    "transformer.encoder.layers.#.norm#.*": "encoder.layers.#.norm#.*",
    "transformer.decoder.layers.#.self_attn.in_proj_*": (
        "decoder.layers.#.self_attention.query_proj.*",
        "decoder.layers.#.self_attention.key_proj.*",
        "decoder.layers.#.self_attention.value_proj.*",
    ),
    "transformer.decoder.layers.#.self_attn.out_proj.*": (
        "decoder.layers.#.self_attention.output_proj.*"
    ),
    **with_prefixes(
        ATTENTION, "transformer.decoder.layers.#.cross_attn.", "decoder.layers.#.cross_attention."
    ),
    "transformer.decoder.layers.#.linear1.*": "decoder.layers.#.feed_forward.expand.*",
    "transformer.decoder.layers.#.linear2.*": "decoder.layers.#.feed_forward.contract.*",
    # Their norms are numbered in the order of declaration, where cross-attention comes first. Ours
    # are numbered in the order of execution.
    "transformer.decoder.layers.#.norm1.*": "decoder.layers.#.norm2.*",
    "transformer.decoder.layers.#.norm2.*": "decoder.layers.#.norm1.*",
    "transformer.decoder.layers.#.norm3.*": "decoder.layers.#.norm3.*",
    "transformer.decoder.ref_point_head.*": "decoder.position_embeddings.0.mlp.*",
}

DAB_NAMES: Names = {
    **SHARED,
    # All layers from layer 1 on share this module.
    "transformer.decoder.query_scale.*": "decoder.position_embeddings.1.scale.*",
    "class_embed.#.*": "decoder.heads.#.classify.*",
    "bbox_embed.#.*": "decoder.heads.#.regress.*",
    "transformer.decoder.bbox_embed.#.*": "decoder.heads.#.regress.*",  # a second name of the same
    "tgt_embed.weight": "queries.embedding",
    "refpoint_embed.weight": "queries.anchors",
}

DINO_NAMES: Names = {
    **SHARED,
    "transformer.decoder.norm.*": "decoder.norm.*",
    # All layers share one head. The file has it under a name for each layer, and that twice.
    **{f"class_embed.{i}.*": "decoder.heads.0.classify.*" for i in LAYERS},
    **{f"bbox_embed.{i}.*": "decoder.heads.0.regress.*" for i in LAYERS},
    **{f"transformer.decoder.class_embed.{i}.*": "decoder.heads.0.classify.*" for i in LAYERS},
    **{f"transformer.decoder.bbox_embed.{i}.*": "decoder.heads.0.regress.*" for i in LAYERS},
    "transformer.tgt_embed.weight": "queries.matching.embedding",
    "transformer.enc_output.*": "queries.matching.heads.project.*",
    "transformer.enc_output_norm.weight": "queries.matching.heads.norm_weight",
    "transformer.enc_output_norm.bias": "queries.matching.heads.norm_bias",
    "transformer.enc_out_class_embed.*": "queries.matching.heads.classify.*",
    "transformer.enc_out_bbox_embed.layers.#.*": "queries.matching.heads.regress.#.*",
    "label_enc.weight": "queries.labels.weight",
}


# Arguments of the training scripts -> recipe fields that no tensor shows
ARGUMENTS = {"nheads": "num_heads", "dropout": "dropout"}
DENOISING_ARGUMENTS = {
    "dn_number": "num_denoising",
    "dn_label_noise_ratio": "label_noise_ratio",
    "dn_box_noise_scale": "box_noise_scale",
}
# Arguments of DINO's configuration that change the network and that no tensor shows, with the
# values that all configurations of the authors have
REQUIRED_OF_DINO = {
    "transformer_activation": "relu",
    "decoder_module_seq": ["sa", "ca", "ffn"],  # self-attention, cross-attention, feed-forward
}
# Other arguments -> recipe fields. They follow from the tensors, so they are only written.
DEFORMABLE_SIZES = {
    "num_feature_levels": "num_levels",
    "enc_n_points": "num_points",
    "dec_n_points": "num_points",
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the training script's arguments give."""
    return named_fields(ARGUMENTS, file.metadata)


def describe(description: Description) -> dict[str, Any]:
    """Return the arguments of the training script of DAB-Deformable-DETR."""
    return arguments({**ARGUMENTS, **SIZES, **DEFORMABLE_SIZES}, description)


def dino_options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields of DINO that the training script's arguments give."""
    expect_values(REQUIRED_OF_DINO, file.metadata, file.where)
    return {
        **options(file),
        **temperature(file, *TEMPERATURES),
        **named_fields(DENOISING_ARGUMENTS, file.metadata),
    }


def describe_dino(description: Description) -> dict[str, Any]:
    """Return the arguments of the training script of DINO."""
    names = {**DENOISING_ARGUMENTS, **dict.fromkeys(TEMPERATURES, "temperature")}
    args = {**describe(description), **named_values(names, description), "use_dn": True}
    if description.fields["backbone"] == SWIN_LARGE:
        args["backbone"] = "swin_L_384_22k"
    return args


def is_written(name: str, state: Mapping[str, Tensor]) -> bool:
    """True for the names of heads that DINO has, and for those of its backbone's kind.

    The table has names of more layers, and those of ResNet's tensors fit any backbone's.
    """
    if name.startswith("backbone."):
        is_swin = "backbone.network.patch_embed.proj.weight" in state
        return is_swin != name.startswith("backbone.0.body.")
    head = re.fullmatch(r"(?:transformer\.decoder\.)?(?:class|bbox)_embed\.(\d+)\..*", name)
    return head is None or f"decoder.layers.{head[1]}.norm1.weight" in state


def dino_preset(file: Checkpoint) -> str:
    """Return the preset that has the backbone of the file."""
    is_swin = "backbone.network.patch_embed.proj.weight" in file.state
    return "dino-4scale-swin-l" if is_swin else "dino-4scale-r50"


OFFICIAL_DAB_DEFORMABLE = Layout(
    title="the authors' DAB-Deformable-DETR",
    preset=lambda _: "dab-deformable-detr-r50",
    signature=("transformer.level_embed", "tgt_embed.weight", "refpoint_embed.weight"),
    names=DAB_NAMES,
    options=options,
    categories=categories,
    is_written=is_written,
    describe=describe,
)
OFFICIAL_DINO = Layout(
    title="the authors' DINO",
    preset=dino_preset,
    signature=(
        "transformer.level_embed",
        "transformer.enc_out_class_embed.weight",
        "label_enc.weight",
    ),
    names=DINO_NAMES,
    options=dino_options,
    categories=categories,
    is_written=is_written,
    describe=describe_dino,
)
