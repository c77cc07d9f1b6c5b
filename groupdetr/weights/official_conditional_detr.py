"""The authors' Conditional DETR checkpoints, R50 and R50-DC5, 564 tensors each.

(github.com/Atten4Vis/ConditionalDETR) The branch GroupDETR differs in one tensor:
``query_embed.weight`` has K*N rows, group after group.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import (
    Description,
    Layout,
    Names,
    RecipeFields,
    with_prefixes,
)
from groupdetr.weights.metadata_fields import named_fields, r50_or_dc5
from groupdetr.weights.script_arguments import SIZES, arguments, categories

# One decoder layer, without what Hugging Face stores under other names.
DECODER: Names = {
    "sa_qcontent_proj.*": "self_attention.query_content_proj.*",
    "sa_qpos_proj.*": "self_attention.query_pos_proj.*",
    "sa_kcontent_proj.*": "self_attention.key_content_proj.*",
    "sa_kpos_proj.*": "self_attention.key_pos_proj.*",
    "sa_v_proj.*": "self_attention.value_proj.*",
    "self_attn.out_proj.*": "self_attention.output_proj.*",
    "ca_qcontent_proj.*": "cross_attention.query_content_proj.*",
    "ca_qpos_proj.*": "cross_attention.query_pos_proj.*",  # layer 0 only
    "ca_kcontent_proj.*": "cross_attention.key_content_proj.*",
    "ca_kpos_proj.*": "cross_attention.key_pos_proj.*",
    "ca_qpos_sine_proj.*": "cross_attention.query_sine_proj.*",
    "ca_v_proj.*": "cross_attention.value_proj.*",
}

# Conditional DETR and its descendants DAB-DETR and DN-DETR.
SHARED: Names = {
    "*.num_batches_tracked": (),  # frozen batch norms count no batches
    "backbone.0.body.*": "backbone.network.*",
    "input_proj.*": "encoder.projection.*",
    "transformer.encoder.layers.#.self_attn.in_proj_*": (
        "encoder.layers.#.attention.query_proj.*",
        "encoder.layers.#.attention.key_proj.*",
        "encoder.layers.#.attention.value_proj.*",
    ),
    "transformer.encoder.layers.#.self_attn.out_proj.*": "encoder.layers.#.attention.output_proj.*",
    "transformer.encoder.layers.#.linear1.*": "encoder.layers.#.feed_forward.expand.*",
    "transformer.encoder.layers.#.linear2.*": "encoder.layers.#.feed_forward.contract.*",
    "transformer.encoder.layers.#.norm#.*": "encoder.layers.#.norm#.*",
    **with_prefixes(DECODER, "transformer.decoder.layers.#.", "decoder.layers.#."),
    "transformer.decoder.layers.#.cross_attn.out_proj.*": (
        "decoder.layers.#.cross_attention.output_proj.*"
    ),
    "transformer.decoder.layers.#.linear1.*": "decoder.layers.#.feed_forward.expand.*",
    "transformer.decoder.layers.#.linear2.*": "decoder.layers.#.feed_forward.contract.*",
    "transformer.decoder.layers.#.norm#.*": "decoder.layers.#.norm#.*",
    "transformer.decoder.norm.*": "decoder.norm.*",
    "class_embed.*": "decoder.heads.0.classify.*",
    "bbox_embed.*": "decoder.heads.0.regress.*",
}

NAMES: Names = {
    **SHARED,
    "query_embed.weight": "queries.embedding",
    "transformer.decoder.ref_point_head.*": "queries.ref_point_head.*",
    # All layers from layer 1 on share this module.
    "transformer.decoder.query_scale.*": (
        "decoder.layers.1.cross_attention.query_sine_embed.scale.*"
    ),
}


# Arguments of the training script -> recipe fields that no tensor shows
ARGUMENTS = {"nheads": "num_heads", "dropout": "dropout", "dilation": "dilated"}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the training script's arguments give."""
    return named_fields(ARGUMENTS, file.metadata)


def describe(description: Description) -> dict[str, Any]:
    """Return the arguments of the training script."""
    return arguments({**ARGUMENTS, **SIZES}, description)


OFFICIAL = Layout(
    title="the authors' Conditional DETR",
    preset=partial(r50_or_dc5, "conditional-detr", "dilation"),
    signature=(
        "class_embed.weight",
        "query_embed.weight",
        "transformer.decoder.ref_point_head.*",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    describe=describe,
)
