"""detrex's checkpoints of DINO with ResNet-50 (github.com/IDEA-Research/detrex), 634 tensors.

Its detector differs from the authors': every layer has heads of its own, the position embedding of
the image is Deformable DETR's, and the classes are the 80 that COCO uses. The file has no metadata
about this.
"""

from __future__ import annotations

from typing import Any

import torch
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
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.detectron2_resnet import RESNET
from groupdetr.weights.metadata_fields import CATEGORIES, named_fields
from groupdetr.weights.official_deformable import ATTENTION

LAYERS = 6  # of the decoder
LEVELS = 3  # that come from the backbone; a fourth is computed from the last of them
# Entries of the metadata in a file of this library -> recipe fields that no tensor shows
OWN_FIELDS = {"nheads": "num_heads", "dropout": "dropout"}
LABEL_ROWS = "queries.labels.weight"  # the label embedding of denoising queries

NECK: Names = {
    **{f"neck.convs.{i}.conv.*": f"encoder.project.levels.{i}.0.*" for i in range(LEVELS)},
    **{f"neck.convs.{i}.norm.*": f"encoder.project.levels.{i}.1.*" for i in range(LEVELS)},
    "neck.extra_convs.0.conv.*": f"encoder.project.levels.{LEVELS}.0.*",
    "neck.extra_convs.0.norm.*": f"encoder.project.levels.{LEVELS}.1.*",
}

# One encoder layer.
ENCODER: Names = {
    **with_prefixes(ATTENTION, "attentions.0.", "attention."),
    "ffns.0.layers.0.0.*": "feed_forward.expand.*",
    "ffns.0.layers.1.*": "feed_forward.contract.*",
    "norms.0.*": "norm1.*",
    "norms.1.*": "norm2.*",
}

# One decoder layer.
DECODER: Names = {
    "attentions.0.attn.in_proj_*": (
        "self_attention.query_proj.*",
        "self_attention.key_proj.*",
        "self_attention.value_proj.*",
    ),
    "attentions.0.attn.out_proj.*": "self_attention.output_proj.*",
    **with_prefixes(ATTENTION, "attentions.1.", "cross_attention."),
    "ffns.0.layers.0.0.*": "feed_forward.expand.*",
    "ffns.0.layers.1.*": "feed_forward.contract.*",
    "norms.0.*": "norm1.*",  # in the order of execution, unlike in the authors' file
    "norms.1.*": "norm2.*",
    "norms.2.*": "norm3.*",
}

HEADS: Names = {
    # There is one head more than layers, for the proposals.
    f"class_embed.{LAYERS}.*": "queries.matching.heads.classify.*",
    f"bbox_embed.{LAYERS}.layers.#.*": "queries.matching.heads.regress.#.*",
    "class_embed.#.*": "decoder.heads.#.classify.*",
    "bbox_embed.#.*": "decoder.heads.#.regress.*",
}

NAMES: Names = {
    "*.num_batches_tracked": (),
    **RESNET,
    **NECK,
    "transformer.level_embeds": "encoder.level_embed",
    **with_prefixes(ENCODER, "transformer.encoder.layers.#.", "encoder.layers.#."),
    **with_prefixes(DECODER, "transformer.decoder.layers.#.", "decoder.layers.#."),
    "transformer.decoder.norm.*": "decoder.norm.*",
    "transformer.decoder.ref_point_head.*": "decoder.position_embeddings.0.mlp.*",
    **HEADS,
    **with_prefixes(HEADS, "transformer.decoder.", ""),  # a second name of the same
    "transformer.tgt_embed.weight": "queries.matching.embedding",
    "transformer.enc_output.*": "queries.matching.heads.project.*",
    "transformer.enc_output_norm.weight": "queries.matching.heads.norm_weight",
    "transformer.enc_output_norm.bias": "queries.matching.heads.norm_bias",
    "label_enc.weight": LABEL_ROWS,
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that all its configurations of DINO share."""
    fields = {"shared_heads": False, "temperature": 10000.0, "offset": -0.5}
    return {**fields, **named_fields(OWN_FIELDS, file.metadata)}


def categories(metadata: Metadata) -> list[IdAndName]:
    """Return the categories that COCO uses, in the order of their ids, or those of this library."""
    if CATEGORIES in metadata:
        return [(id, name) for id, name in metadata[CATEGORIES]]
    return [(id, name) for id, name in enumerate(COCO_91) if name != "N/A"]


def add_no_object_label(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a last row to the label embedding. The authors' table has it, and DINO never uses it."""
    labels = state[LABEL_ROWS]
    return state | {LABEL_ROWS: torch.cat([labels, torch.zeros_like(labels[:1])])}


def remove_no_object_label(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the last row of the label embedding, which detrex's table does not have."""
    return state | {LABEL_ROWS: state[LABEL_ROWS][:-1]}


def describe(description: Description) -> dict[str, Any]:
    """Return metadata of this library, because the files of others have none."""
    fields = description.fields
    return {
        **{name: fields[ours] for name, ours in OWN_FIELDS.items()},
        "num_queries": fields["num_queries"],
        "group_detr": fields["num_groups"],
        CATEGORIES: [[id, name] for id, name in description.categories],
        "imgsz": description.imgsz,
    }


DETREX_DINO = Layout(
    title="detrex's DINO",
    preset=lambda _: "dino-4scale-r50",
    signature=(
        "transformer.level_embeds",
        "transformer.enc_output.weight",
        "neck.convs.#.conv.weight",
        "label_enc.weight",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    complete=add_no_object_label,
    undo_complete=remove_no_object_label,
    describe=describe,
)
