"""The authors' checkpoints of DAB-DETR and DN-DETR, R50 and R50-DC5.

(github.com/IDEA-Research) They have 590 tensors, one more with patterns, and one more in DN-DETR:
the label embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Description, Layout, Names, RecipeFields
from groupdetr.errors import WeightsError
from groupdetr.weights.metadata_fields import named_fields, r50_or_dc5
from groupdetr.weights.official_conditional_detr import ARGUMENTS, SHARED
from groupdetr.weights.official_conditional_detr import options as conditional_options
from groupdetr.weights.script_arguments import SIZES, arguments, categories

NAMES: Names = {
    "transformer.decoder.bbox_embed.*": "decoder.heads.0.regress.*",  # a second name of bbox_embed
    **SHARED,
    "transformer.encoder.layers.#.activation.weight": (
        "encoder.layers.#.feed_forward.activation.weight"
    ),
    "transformer.encoder.query_scale.*": "encoder.position_embedding.scale.*",
    "transformer.decoder.layers.#.activation.weight": (
        "decoder.layers.#.feed_forward.activation.weight"
    ),
    "transformer.decoder.ref_point_head.*": "decoder.position_embeddings.0.mlp.*",
    "transformer.decoder.ref_anchor_head.*": (
        "decoder.layers.0.cross_attention.query_sine_embed.size.*"
    ),
    # All layers from layer 1 on share this module.
    "transformer.decoder.query_scale.*": (
        "decoder.layers.1.cross_attention.query_sine_embed.point.scale.*"
    ),
    "refpoint_embed.weight": "queries.anchors",
    "transformer.patterns.weight": "queries.patterns",
}

DENOISING: Names = {
    **NAMES,
    "label_enc.weight": "queries.labels.weight",
    "refpoint_embed.weight": "queries.matching.anchors",
    "transformer.patterns.weight": "queries.matching.patterns",
}


# The arguments for the temperature of height and of width, which is one field of a recipe
TEMPERATURES = ("pe_temperatureH", "pe_temperatureW")
# Arguments of DN-DETR's training script -> recipe fields
DENOISING_ARGUMENTS = {
    "scalar": "denoising_groups",
    "label_noise_scale": "label_noise_ratio",
    "box_noise_scale": "box_noise_scale",
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the training script's arguments give."""
    return {**conditional_options(file), **temperature(file, *TEMPERATURES)}


def describe(description: Description) -> dict[str, Any]:
    """Return the arguments of the training script."""
    names = {**ARGUMENTS, **SIZES, "num_patterns": "num_patterns"}
    names |= dict.fromkeys(TEMPERATURES, "temperature")
    return arguments(names, description)


def temperature(file: Checkpoint, height: str, width: str) -> RecipeFields:
    """Return the temperature of the image's position embedding as a recipe field, {} if unknown.

    ``height`` and ``width`` are the two entries of the metadata. `WeightsError` if they differ.
    """
    metadata = file.metadata
    if metadata.get(height) != metadata.get(width):
        raise WeightsError(
            "the position embedding has one temperature for height "
            f"({metadata.get(height)}) and another for width ({metadata.get(width)})",
            file.where,
            "groupdetr has one temperature for both: use other weights",
        )
    return {"temperature": float(metadata[height])} if height in metadata else {}


def denoising_options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields of DN-DETR that the training script's arguments give."""
    return {**options(file), **named_fields(DENOISING_ARGUMENTS, file.metadata)}


def describe_denoising(description: Description) -> dict[str, Any]:
    """Return the arguments of the training script of DN-DETR."""
    denoising = named_values(DENOISING_ARGUMENTS, description)
    return {**describe(description), "use_dn": True, **denoising}


def named_values(names: Mapping[str, str], description: Description) -> dict[str, Any]:
    """Return metadata with the recipe fields that have a value. ``names``: theirs -> ours."""
    fields = description.fields
    return {theirs: fields[ours] for theirs, ours in names.items() if fields[ours] is not None}


SIGNATURE = ("class_embed.weight", "refpoint_embed.weight", "transformer.decoder.ref_anchor_head.*")
OFFICIAL_DAB = Layout(
    title="the authors' DAB-DETR",
    preset=partial(r50_or_dc5, "dab-detr", "dilation"),
    signature=SIGNATURE,
    names=NAMES,
    options=options,
    categories=categories,
    describe=describe,
)
OFFICIAL_DN = Layout(
    title="the authors' DN-DETR",
    preset=partial(r50_or_dc5, "dn-detr", "dilation"),
    signature=(*SIGNATURE, "label_enc.weight"),
    names=DENOISING,
    options=denoising_options,
    categories=categories,
    describe=describe_denoising,
)
