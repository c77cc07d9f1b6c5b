"""detrex's checkpoints of DINO with ResNet-50 (github.com/IDEA-Research/detrex), 634 tensors.

Its detector differs from the authors': every layer has heads of its own, the position embedding of the image is
Deformable DETR's, and classes are the 80 that COCO uses. None of this stands in the file beside the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from groupdetr.checkpoints.layout import Category, Facts, Layout, Names, within
from groupdetr.weights.adapt import LABEL_ROWS
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.deformable import ATTENTION
from groupdetr.weights.detectron2 import RESNET

LAYERS = 6  # of the decoder
LEVELS = 3  # from the backbone; one is made of the last


NECK: Names = {
    "neck.convs.#.conv.*": "encoder.project.levels.#.0.*",
    "neck.convs.#.norm.*": "encoder.project.levels.#.1.*",
    "neck.extra_convs.0.conv.*": f"encoder.project.levels.{LEVELS}.0.*",
    "neck.extra_convs.0.norm.*": f"encoder.project.levels.{LEVELS}.1.*",
}

ENCODER: Names = {
    **within(ATTENTION, "attentions.0.", "attention."),
    "ffns.0.layers.0.0.*": "feed_forward.expand.*",
    "ffns.0.layers.1.*": "feed_forward.contract.*",
    "norms.0.*": "norm1.*",
    "norms.1.*": "norm2.*",
}  # of one layer

DECODER: Names = {
    "attentions.0.attn.in_proj_*": (
        "self_attention.query.*",
        "self_attention.key.*",
        "self_attention.value.*",
    ),
    "attentions.0.attn.out_proj.*": "self_attention.output.*",
    **within(ATTENTION, "attentions.1.", "cross_attention."),
    "ffns.0.layers.0.0.*": "feed_forward.expand.*",
    "ffns.0.layers.1.*": "feed_forward.contract.*",
    "norms.0.*": "norm1.*",  # by turn, unlike the authors'
    "norms.1.*": "norm2.*",
    "norms.2.*": "norm3.*",
}  # of one layer

HEADS: Names = {
    f"class_embed.{LAYERS}.*": "queries.matching.heads.classify.*",  # one more than layers, for the proposals
    f"bbox_embed.{LAYERS}.layers.#.*": "queries.matching.heads.regress.#.*",
    "class_embed.#.*": "decoder.heads.#.classify.*",
    "bbox_embed.#.*": "decoder.heads.#.regress.*",
}


NAMES: Names = {
    "*.num_batches_tracked": (),
    **RESNET,
    **NECK,
    "transformer.level_embeds": "encoder.level",
    **within(ENCODER, "transformer.encoder.layers.#.", "encoder.layers.#."),
    **within(DECODER, "transformer.decoder.layers.#.", "decoder.layers.#."),
    "transformer.decoder.norm.*": "decoder.norm.*",
    "transformer.decoder.ref_point_head.*": "decoder.places.0.mlp.*",
    **HEADS,
    **within(HEADS, "transformer.decoder.", ""),  # the same under a second name
    "transformer.tgt_embed.weight": "queries.matching.embedding",
    "transformer.enc_output.*": "queries.matching.heads.project.*",
    "transformer.enc_output_norm.weight": "queries.matching.heads.norm_weight",
    "transformer.enc_output_norm.bias": "queries.matching.heads.norm_bias",
    "label_enc.weight": LABEL_ROWS,
}


def options(facts: Facts) -> dict[str, Any]:
    """As in all its configurations of DINO."""
    del facts
    return {"shared_heads": False, "temperature": 10000.0, "offset": -0.5}


def categories(facts: Facts) -> list[Category]:
    """Rows are the categories that COCO uses, in the order of their ids."""
    del facts
    return [(id, name) for id, name in enumerate(COCO_91) if name != "N/A"]


def complete(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a last row of labels, which the authors' table has and DINO never reads."""
    labels = state[LABEL_ROWS]
    return state | {LABEL_ROWS: torch.cat([labels, torch.zeros_like(labels[:1])])}


DETREX_DINO = Layout(
    "detrex's DINO",
    lambda _: "dino-4scale-r50",
    (
        "transformer.level_embeds",
        "transformer.enc_output.weight",
        "neck.convs.#.conv.weight",
        "label_enc.weight",
    ),
    NAMES,
    options,
    categories,
    complete,
)
