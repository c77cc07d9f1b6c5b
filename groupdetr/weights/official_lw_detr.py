"""The authors' checkpoints of LW-DETR (github.com/Atten4Vis/LW-DETR), and tables that others share.

Roboflow's RF-DETR has the same names outside of its backbone.
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
    OfGroups,
    RecipeFields,
    with_prefixes,
)
from groupdetr.modeling.backbones.windowed_vit_names import LW_DETR_VIT
from groupdetr.weights.coco_names import COCO_91
from groupdetr.weights.metadata_fields import CATEGORIES, expect_values, named_fields
from groupdetr.weights.objects365_names import OBJECTS365
from groupdetr.weights.official_deformable import ATTENTION
from groupdetr.weights.windowed_vit_sizes import (
    find_preset,
    integers,
    num_points,
    sizes_of_network,
)

PRESETS = tuple(f"lw-detr-{size}" for size in ("tiny", "small", "medium", "large", "xlarge"))
# Sizes that distinguish them
PRESET_FIELDS = ("vit_width", "vit_depth", "channels", "projector_levels")
# The name of the encoder in the training script, by the width of the ViT
ENCODERS = {192: "vit_tiny", 384: "vit_small", 768: "vit_base"}

# The projector. Wide maps of P3, which is always the first level, are projected before they are
# upsampled; `is_written` chooses between the two names of the transposed convolution.
PROJECTOR: Names = {
    "stages_sampling.0.#.0.conv.*": "levels.0.resample.#.reduce.conv.*",
    "stages_sampling.0.#.0.bn.*": "levels.0.resample.#.reduce.norm.*",
    "stages_sampling.0.#.1.*": "levels.0.resample.#.upsample.*",
    "stages_sampling.#.#.0.conv.*": "levels.#.resample.#.downsample.conv.*",
    "stages_sampling.#.#.0.bn.*": "levels.#.resample.#.downsample.norm.*",
    "stages_sampling.#.#.0.*": "levels.#.resample.#.upsample.*",
    "stages.#.0.cv#.conv.*": "levels.#.c2f.conv#.conv.*",
    "stages.#.0.cv#.bn.*": "levels.#.c2f.conv#.norm.*",
    "stages.#.0.m.#.cv#.conv.*": "levels.#.c2f.bottlenecks.#.conv#.conv.*",
    "stages.#.0.m.#.cv#.bn.*": "levels.#.c2f.bottlenecks.#.conv#.norm.*",
    "stages.#.1.*": "levels.#.norm.*",
}

# One decoder layer
DECODER: Names = {
    "self_attn.in_proj_*": (
        "self_attention.query_proj.*",
        "self_attention.key_proj.*",
        "self_attention.value_proj.*",
    ),
    "self_attn.out_proj.*": "self_attention.output_proj.*",
    **with_prefixes(ATTENTION, "cross_attn.", "cross_attention."),
    "linear1.*": "feed_forward.expand.*",
    "linear2.*": "feed_forward.contract.*",
    "norm#.*": "norm#.*",  # in the order of execution, unlike in DINO
}

# The heads of the proposals: one for each group
PROPOSALS: Names = {
    "enc_output.#.*": OfGroups("queries.heads.project.*"),
    "enc_output_norm.#.weight": OfGroups("queries.heads.norm_weight"),
    "enc_output_norm.#.bias": OfGroups("queries.heads.norm_bias"),
    "enc_out_class_embed.#.*": OfGroups("queries.heads.classify.*"),
    "enc_out_bbox_embed.#.layers.#.*": OfGroups("queries.heads.regress.#.*"),
}


def detector_names(projector: str) -> Names:
    """Return the names of everything but the backbone, which Roboflow's RF-DETR has, too.

    ``projector`` is how our names of the projector begin.
    """
    return {
        "*.num_batches_tracked": (),
        **with_prefixes(PROJECTOR, "backbone.0.projector.", projector),
        **with_prefixes(DECODER, "transformer.decoder.layers.#.", "decoder.layers.#."),
        "transformer.decoder.norm.*": "decoder.norm.*",
        # All layers share the embedding of the reference, and the heads.
        "transformer.decoder.ref_point_head.*": "decoder.position_embeddings.0.mlp.*",
        "class_embed.*": "decoder.heads.0.classify.*",
        "bbox_embed.*": "decoder.heads.0.regress.*",
        **with_prefixes(PROPOSALS, "transformer.", ""),
        # Tables of all groups, one after the other
        "refpoint_embed.weight": "queries.learned_offset",
        "query_feat.weight": "queries.embedding",
    }


NAMES: Names = {
    **detector_names("encoder."),
    **with_prefixes(LW_DETR_VIT, "backbone.0.encoder.", "backbone.network."),
}

# An argument that no tensor shows, and its only value here: boxes are relative to their references
REQUIRED = {"bbox_reparam": True}
# Other arguments of the training script -> recipe fields that no tensor shows
ARGUMENTS = {
    "sa_nheads": "num_heads",
    "ca_nheads": "cross_attention_heads",
    "num_select": "num_detections",
    "drop_path": "drop_path",
}
# Other arguments -> recipe fields. They follow from the tensors, so they are only written.
SIZES = {
    "vit_encoder_num_layers": "vit_depth",
    "hidden_dim": "channels",
    "dim_feedforward": "dim_feedforward",
    "dec_layers": "decoder_layers",
    "dec_n_points": "num_points",
    "num_queries": "num_queries",
    "group_detr": "num_groups",
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the tensors and the training script's arguments give.

    `WeightsError` if they are those of another network than ours.
    """
    args = file.metadata
    expect_values(REQUIRED, args, file.where)
    fields = {**sizes_of_network(file.state), **named_fields(ARGUMENTS, args)}
    if args.get("out_feature_indexes") is not None:
        fields["map_blocks"] = integers(args["out_feature_indexes"])
    if args.get("window_block_indexes") is not None:
        windowed = integers(args["window_block_indexes"])
        fields["global_blocks"] = other_blocks(windowed, fields["vit_depth"])
    return with_num_points(fields, file)


def other_blocks(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Return the blocks of 0 to ``depth`` - 1 that are not among ``blocks``."""
    return tuple(block for block in range(depth) if block not in blocks)


def with_num_points(fields: RecipeFields, file: Checkpoint) -> RecipeFields:
    """Return the fields with the number of sampling points, if those of the heads are known."""
    heads = fields.get("cross_attention_heads")
    if type(heads) is not int or heads < 1:
        return fields
    return {**fields, "num_points": num_points(file.state, heads)}


def categories(args: Metadata) -> list[IdAndName]:
    """Return the classes: the category ids of COCO or Objects365 are the rows.

    A file of this library has its own. Without arguments, a head of 91 rows is that of COCO.
    """
    if CATEGORIES in args:
        return [(id, name) for id, name in args[CATEGORIES]]
    dataset = args.get("dataset_file", "coco")
    named = {"coco": COCO_91, "o365": OBJECTS365}
    return list(enumerate(named.get(dataset, [])))


def preset(file: Checkpoint) -> str:
    """Return the preset whose backbone and channels the file has."""
    return find_preset(file, PRESETS, PRESET_FIELDS, optional=("decoder_layers",))


def is_written(name: str, state: Mapping[str, Tensor]) -> bool:
    """True for the name of the transposed convolution that the detector has, and for all others."""
    upsample = re.fullmatch(r"backbone\.0\.projector\.stages_sampling\.0\.(\d+)\.(\d)\.\w+", name)
    if upsample is None:
        return True
    is_reduced = f"encoder.levels.0.resample.{upsample[1]}.reduce.conv.weight" in state
    return upsample[2] == ("1" if is_reduced else "0")


def describe(description: Description) -> dict[str, Any]:
    """Return the arguments of the training script."""
    fields, classes = description.fields, list(description.categories)
    return {
        **{theirs: fields[ours] for theirs, ours in {**ARGUMENTS, **SIZES}.items()},
        "encoder": ENCODERS.get(fields["vit_width"], ""),
        "window_block_indexes": list(other_blocks(fields["global_blocks"], fields["vit_depth"])),
        "out_feature_indexes": list(fields["map_blocks"]),
        "projector_scale": list(fields["projector_levels"]),
        "two_stage": True,
        "bbox_reparam": True,
        "lite_refpoint_refine": True,
        "dataset_file": "coco" if classes == list(enumerate(COCO_91)) else "custom",
        CATEGORIES: [[id, name] for id, name in classes],
        "imgsz": description.imgsz,
    }


OFFICIAL_LW_DETR = Layout(
    title="the authors' LW-DETR",
    preset=preset,
    signature=(
        "backbone.0.encoder.pos_embed",
        "backbone.0.projector.stages.#.*",
        "transformer.enc_output.#.weight",
        "query_feat.weight",
    ),
    names=NAMES,
    options=options,
    categories=categories,
    # The authors evaluate the moving average if the file has it.
    averages=("ema_model",),
    is_written=is_written,
    describe=describe,
)
