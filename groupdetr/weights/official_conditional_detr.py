"""The authors' Conditional DETR checkpoints, R50 and R50-DC5, 564 tensors each.

(github.com/Atten4Vis/ConditionalDETR) The branch GroupDETR differs in one tensor:
``query_embed.weight`` has K*N rows, group after group.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from groupdetr.console.text import quote
from groupdetr.errors import WeightsError
from groupdetr.weights.coco_names import COCO_91

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
# Other arguments -> recipe fields. They follow from the tensors, so they are only written.
SIZES = {
    "num_queries": "num_queries",
    "group_detr": "num_groups",
    "hidden_dim": "channels",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "dim_feedforward": "dim_feedforward",
}
# The entry of a file of this library, with the classes of a data set that is not COCO
CATEGORIES = "categories"


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the training script's arguments give."""
    return named_fields(ARGUMENTS, file.metadata)


def named_fields(names: Mapping[str, str], metadata: Metadata) -> RecipeFields:
    """Return the recipe fields that metadata have. ``names``: their name -> recipe field."""
    return {ours: metadata[theirs] for theirs, ours in names.items() if theirs in metadata}


def expect_values(values: Mapping[str, object], metadata: Metadata, where: str) -> None:
    """Raise `WeightsError` if an entry of metadata has another value than the one in ``values``.

    These are entries that no tensor shows, and the only value that our network computes. An entry
    may be missing. ``where`` is the file.
    """
    for name, ours in values.items():
        theirs = metadata.get(name, ours)
        if theirs != ours:
            raise WeightsError(
                f"{name} is {theirs!r} in the metadata of this file, and groupdetr supports only "
                f"{ours!r}",
                where,
                "use other weights",
            )


def arguments(names: Mapping[str, str], description: Description) -> dict[str, Any]:
    """Return the arguments of a training script that describe a detector.

    ``names``: argument -> recipe field. They are those of the authors' scripts, and the classes and
    the size of the images, which the scripts do not have.
    """
    fields, classes = description.fields, list(description.categories)
    return {
        **{theirs: fields[ours] for theirs, ours in names.items() if ours in fields},
        "backbone": "resnet50",
        "position_embedding": "sine",
        "dataset_file": "coco" if classes == list(enumerate(COCO_91)) else "custom",
        CATEGORIES: [[id, name] for id, name in classes],
        "imgsz": description.imgsz,
    }


def describe(description: Description) -> dict[str, Any]:
    """Return the arguments of the training script."""
    return arguments({**ARGUMENTS, **SIZES}, description)


def categories(args: Metadata) -> list[IdAndName]:
    """Return the classes: COCO's category ids, which are the rows, or those of this library."""
    if args.get("dataset_file") == "coco":
        return list(enumerate(COCO_91))
    return [(id, name) for id, name in args.get(CATEGORIES, ())]


def r50_or_dc5(family: str, dilation: str, file: Checkpoint) -> str:
    """Return the preset: ``family``-r50 or ``family``-r50-dc5.

    Both have the same tensors. Only the entry ``dilation`` of the metadata distinguishes them.
    """
    r50, dc5 = f"{family}-r50", f"{family}-r50-dc5"
    if dilation not in file.metadata:
        raise WeightsError(
            f"the file does not say if it is {r50} or {dc5}",
            file.where,
            f"name the model: groupdetr import {quote(file.where)} --model {r50} "
            f"(Python: preset={r50!r})",
        )
    is_dilated = file.metadata[dilation]
    if not isinstance(is_dilated, bool):
        raise TypeError(f"{dilation} is a {type(is_dilated).__name__}, not true or false")
    return dc5 if is_dilated else r50


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
