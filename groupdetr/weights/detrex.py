"""detrex's checkpoints of DINO with ResNet-50 (github.com/IDEA-Research/detrex), 634 tensors.

Its detector differs from the authors': every layer has heads of its own, the position embedding of the image is
Deformable DETR's, and classes are the 80 that COCO uses. None of this stands in the file beside the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groupdetr.weights.adapt import LABEL_ROWS
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.deformable import ATTENTION
from groupdetr.weights.layout import Category, Facts, Layout, Names

LAYERS = 6  # of the decoder
LEVELS = 3  # from the backbone; one is made of the last


def _resnet() -> Iterator[tuple[str, str]]:
    """detectron2's ResNet to torchvision's names. A norm is part of the convolution before it."""
    yield "stem.conv1.norm.*", "bn1.*"
    yield "stem.conv1.*", "conv1.*"
    for stage in range(1, 5):
        block, ours = f"res{stage + 1}.#", f"layer{stage}.#"
        yield f"{block}.shortcut.norm.*", f"{ours}.downsample.1.*"
        yield f"{block}.shortcut.*", f"{ours}.downsample.0.*"
        for layer in range(1, 4):
            yield f"{block}.conv{layer}.norm.*", f"{ours}.bn{layer}.*"
            yield f"{block}.conv{layer}.*", f"{ours}.conv{layer}.*"


NECK: Names = {
    "neck.convs.#.conv.*": "encoder.project.levels.#.0.*",
    "neck.convs.#.norm.*": "encoder.project.levels.#.1.*",
    "neck.extra_convs.0.conv.*": f"encoder.project.levels.{LEVELS}.0.*",
    "neck.extra_convs.0.norm.*": f"encoder.project.levels.{LEVELS}.1.*",
}

ENCODER: Names = {
    **{f"attentions.0.{theirs}": f"attention.{ours}" for theirs, ours in ATTENTION.items()},
    "ffns.0.layers.0.0.*": "feed_forward.expand.*",
    "ffns.0.layers.1.*": "feed_forward.contract.*",
    "norms.0.*": "norm1.*",
    "norms.1.*": "norm2.*",
}  # of one layer

DECODER: Names = {
    "attentions.0.attn.in_proj_*": ("self_attention.query.*", "self_attention.key.*", "self_attention.value.*"),
    "attentions.0.attn.out_proj.*": "self_attention.output.*",
    **{f"attentions.1.{theirs}": f"cross_attention.{ours}" for theirs, ours in ATTENTION.items()},
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


def _of_layer(ours: str, part: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return f"{ours}.{part}" if isinstance(part, str) else tuple(f"{ours}.{one}" for one in part)


NAMES: Names = {
    "*.num_batches_tracked": (),
    **{f"backbone.{theirs}": f"backbone.network.{ours}" for theirs, ours in _resnet()},
    **NECK,
    "transformer.level_embeds": "encoder.level",
    **{f"transformer.encoder.layers.#.{name}": _of_layer("encoder.layers.#", ENCODER[name]) for name in ENCODER},
    **{f"transformer.decoder.layers.#.{name}": _of_layer("decoder.layers.#", DECODER[name]) for name in DECODER},
    "transformer.decoder.norm.*": "decoder.norm.*",
    "transformer.decoder.ref_point_head.*": "decoder.places.0.mlp.*",
    **HEADS,
    **{f"transformer.decoder.{theirs}": ours for theirs, ours in HEADS.items()},  # the same under a second name
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
    ("transformer.level_embeds", "transformer.enc_output.weight", "neck.convs.#.conv.weight", "label_enc.weight"),
    NAMES,
    options,
    categories,
    complete,
)
