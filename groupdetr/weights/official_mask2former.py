"""The authors' checkpoints of Mask2Former for instance segmentation, R50, 558 tensors.

(github.com/facebookresearch/Mask2Former) detectron2 writes them, as a pickle of numpy arrays
without metadata. Older files have another name for the queries, and the parts of the pixel decoder
directly in the head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import Layout, Names, RecipeFields, with_prefixes
from groupdetr.weights.detectron2_resnet import RESNET
from groupdetr.weights.detrex_dino import OWN_FIELDS, categories, describe
from groupdetr.weights.metadata_fields import named_fields
from groupdetr.weights.official_deformable import ATTENTION

# The attention of torch.
INPUTS: Names = {
    "in_proj_*": ("query_proj.*", "key_proj.*", "value_proj.*"),
    "out_proj.*": "output_proj.*",
}
CLASSIFY = "decoder.heads.0.classify."
NO_OBJECT_WEIGHT = 0.1  # in the loss, of all published configurations

# One encoder layer.
ENCODER: Names = {
    **with_prefixes(ATTENTION, "self_attn.", "attention."),
    "linear1.*": "feed_forward.expand.*",
    "linear2.*": "feed_forward.contract.*",
    "norm#.*": "norm#.*",
}

# The pixel decoder.
PIXELS: Names = {
    "input_proj.#.*": "encoder.encoder.project.levels.#.*",
    "transformer.level_embed": "encoder.encoder.level_embed",
    **with_prefixes(ENCODER, "transformer.encoder.layers.#.", "encoder.encoder.layers.#."),
    "adapter_1.norm.*": "encoder.lateral.1.*",
    "adapter_1.*": "encoder.lateral.0.*",
    "layer_1.norm.*": "encoder.smooth.1.*",
    "layer_1.*": "encoder.smooth.0.*",
    "mask_features.*": "encoder.pixels.*",
}

PREDICTOR: Names = {
    "query_feat.weight": "queries.embedding",
    "query_embed.weight": "queries.position",
    "level_embed.weight": "encoder.level_embed",
    # A norm belongs to the operation that it follows. Ours are numbered as in a layer whose
    # self-attention comes first.
    **with_prefixes(
        INPUTS,
        "transformer_cross_attention_layers.#.multihead_attn.",
        "decoder.layers.#.cross_attention.",
    ),
    "transformer_cross_attention_layers.#.norm.*": "decoder.layers.#.norm2.*",
    **with_prefixes(
        INPUTS, "transformer_self_attention_layers.#.self_attn.", "decoder.layers.#.self_attention."
    ),
    "transformer_self_attention_layers.#.norm.*": "decoder.layers.#.norm1.*",
    "transformer_ffn_layers.#.linear1.*": "decoder.layers.#.feed_forward.expand.*",
    "transformer_ffn_layers.#.linear2.*": "decoder.layers.#.feed_forward.contract.*",
    "transformer_ffn_layers.#.norm.*": "decoder.layers.#.norm3.*",
    "decoder_norm.*": "decoder.norm.*",
    "class_embed.*": f"{CLASSIFY}*",
    "mask_embed.layers.#.*": "decoder.heads.0.embed.layers.#.*",
}

NAMES: Names = {
    **dict.fromkeys(
        ("criterion.empty_weight", "pixel_mean", "pixel_std", "*.num_batches_tracked"), ()
    ),
    **RESNET,
    **with_prefixes(PREDICTOR, "sem_seg_head.predictor.", ""),
    **with_prefixes(PIXELS, "sem_seg_head.pixel_decoder.", ""),
}
# The names in older files.
OLDER_NAMES: Names = {
    "sem_seg_head.predictor.static_query.weight": "queries.embedding",
    **with_prefixes(PIXELS, "sem_seg_head.", ""),
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields in a file of this library; the authors' have no metadata."""
    return named_fields(OWN_FIELDS, file.metadata)


def split_no_object(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move the last row of their class head, "no object", to a layer of its own."""
    split = dict(state)
    for part in ("weight", "bias"):
        name = f"{CLASSIFY}{part}"
        if name in state:
            split[name] = state[name][:-1]
            split[f"decoder.heads.0.no_object.{part}"] = state[name][-1:]
    return split


def join_no_object(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the row "no object" to the class head, as their class head has it."""
    joined = dict(state)
    for part in ("weight", "bias"):
        row = joined.pop(f"decoder.heads.0.no_object.{part}")
        joined[f"{CLASSIFY}{part}"] = torch.cat([joined[f"{CLASSIFY}{part}"], row])
    return joined


def with_class_weights(classify: str, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the weights of the classes in the loss, which their criterion has as a buffer.

    ``classify`` is the name of their class head, whose last row is "no object".
    """
    weights = torch.ones(len(theirs[f"{classify}.bias"]))
    weights[-1] = NO_OBJECT_WEIGHT
    return theirs | {"criterion.empty_weight": weights}


OFFICIAL_MASK2FORMER = Layout(
    title="the authors' Mask2Former",
    preset=lambda _: "mask2former-r50",
    signature=(
        "sem_seg_head.predictor.query_embed.weight",
        "sem_seg_head.predictor.class_embed.weight",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    complete=split_no_object,
    also_read=OLDER_NAMES,
    undo_complete=join_no_object,
    add_dropped=partial(with_class_weights, "sem_seg_head.predictor.class_embed"),
    describe=describe,
)
