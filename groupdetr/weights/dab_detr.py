"""The authors' checkpoints of DAB-DETR and DN-DETR (github.com/IDEA-Research), R50 and R50-DC5.

590 tensors; with patterns one more, and DN-DETR's label embedding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from groupdetr.checkpoints.layout import Facts, Layout, Names
from groupdetr.errors import WeightsError
from groupdetr.weights.conditional_detr import SHARED, categories, r50_or_dc5
from groupdetr.weights.conditional_detr import options as conditional_options

NAMES: Names = {
    "transformer.decoder.bbox_embed.*": (),  # bbox_embed under a second name
    **SHARED,
    "transformer.encoder.layers.#.activation.weight": "encoder.layers.#.feed_forward.activation.weight",
    "transformer.encoder.query_scale.*": "encoder.place.scale.*",
    "transformer.decoder.layers.#.activation.weight": "decoder.layers.#.feed_forward.activation.weight",
    "transformer.decoder.ref_point_head.*": "decoder.places.0.mlp.*",
    "transformer.decoder.ref_anchor_head.*": "decoder.layers.0.cross_attention.aim.size.*",
    "transformer.decoder.query_scale.*": "decoder.layers.1.cross_attention.aim.point.scale.*",  # from layer 1 on
    "refpoint_embed.weight": "queries.anchors",
    "transformer.patterns.weight": "queries.patterns",
}

DENOISING: Names = {
    **NAMES,
    "label_enc.weight": "queries.labels.weight",
    "refpoint_embed.weight": "queries.matching.anchors",
    "transformer.patterns.weight": "queries.matching.patterns",
}


def options(args: Facts) -> dict[str, Any]:
    """From the training script's arguments."""
    return {**conditional_options(args), **temperature(args, "pe_temperatureH", "pe_temperatureW")}


def temperature(facts: Facts, height: str, width: str) -> dict[str, Any]:
    """That of the image's position embedding, if the file says it."""
    if facts.get(height) != facts.get(width):
        raise WeightsError(
            f"the temperatures of height ({facts.get(height)}) and width ({facts.get(width)}) differ"
        )
    return {"temperature": float(facts[height])} if height in facts else {}


def denoising_options(args: Facts) -> dict[str, Any]:
    names = {
        "scalar": "denoising_groups",
        "label_noise_scale": "label_noise_ratio",
        "box_noise_scale": "box_noise_scale",
    }
    return {
        **options(args),
        **{ours: args[theirs] for theirs, ours in names.items() if theirs in args},
    }


SIGNATURE = ("class_embed.weight", "refpoint_embed.weight", "transformer.decoder.ref_anchor_head.*")
OFFICIAL_DAB = Layout(
    "the authors' DAB-DETR",
    partial(r50_or_dc5, "dab-detr", "dilation"),
    SIGNATURE,
    NAMES,
    options,
    categories,
)
OFFICIAL_DN = Layout(
    "the authors' DN-DETR",
    partial(r50_or_dc5, "dn-detr", "dilation"),
    (*SIGNATURE, "label_enc.weight"),
    DENOISING,
    denoising_options,
    categories,
)
