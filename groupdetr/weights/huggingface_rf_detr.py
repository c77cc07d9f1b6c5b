"""Hugging Face's `RfDetrForObjectDetection` and `RfDetrForInstanceSegmentation`.

Its files have Roboflow's names, and config.json beside them. The names of its modules in memory,
which `state_dict` has, are only read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import (
    Description,
    Metadata,
    Names,
    RecipeFields,
    with_prefixes,
)
from groupdetr.modeling.backbones.windowed_vit_names import HUGGING_FACE_DINOV2
from groupdetr.modeling.box_and_mask_head import EXPANSION
from groupdetr.weights.huggingface_conditional_detr import configuration
from groupdetr.weights.huggingface_lw_detr import (
    ATTENTION_MODULE,
    C2F,
    FIELDS,
    REQUIRED,
    REQUIRED_OF_VIT,
    SHARED,
    SIZES,
    categories,
)
from groupdetr.weights.metadata_fields import expect_values, named_fields
from groupdetr.weights.official_lw_detr import with_num_points
from groupdetr.weights.roboflow_rf_detr import (
    ROBOFLOW_RF_DETR,
    ROBOFLOW_RF_DETR_SEG,
    global_blocks,
)
from groupdetr.weights.windowed_vit_sizes import integers, sizes_of_network

# The modules of the detector in memory. The attention of a block has other names than in files.
DETECTOR_MODULES: Names = {
    **SHARED,
    **with_prefixes(
        with_prefixes(ATTENTION_MODULE, "encoder.layer.#.", "blocks.#."),
        "model.backbone.backbone.",
        "backbone.network.",
    ),
    **with_prefixes(HUGGING_FACE_DINOV2, "model.backbone.backbone.", "backbone.network."),
    # It has one level.
    **with_prefixes(C2F, "model.backbone.projector.", "encoder.levels.0."),
}


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the tensors and config.json give.

    `WeightsError` if it is the configuration of another network than ours.
    """
    config = file.metadata
    of_masks = {"segmentation_head_activation_function": "gelu"}
    expect_values({**REQUIRED, **of_masks}, config, file.where)
    of_vit = {**REQUIRED_OF_VIT, "apply_layernorm": True}
    expect_values(of_vit, config.get("backbone_config", {}), file.where)
    fields = {
        **sizes_of_network(file.state),
        **named_fields(FIELDS, config),
    }
    vit = config.get("backbone_config", {})
    if "num_attention_heads" in vit:
        fields["vit_heads"] = vit["num_attention_heads"]
    if "num_windows" in vit:
        fields["num_windows"] = vit["num_windows"]  # along each side
    if "out_indices" in vit:
        maps = integers(vit["out_indices"])
        fields["map_blocks"] = tuple(number - 1 for number in maps)
        fields["global_blocks"] = global_blocks(maps, fields["vit_depth"])
    return with_num_points(fields, file)


def is_of_transformers(metadata: Metadata) -> bool:
    """True if config.json is that of RF-DETR."""
    return metadata.get("model_type") == "rf_detr"


def describe(description: Description) -> dict[str, Any]:
    """Return the content of config.json of a detector of boxes."""
    return _describe("RfDetrForObjectDetection", description)


def describe_with_masks(description: Description) -> dict[str, Any]:
    """Return the content of config.json of a detector of boxes and masks."""
    config = _describe("RfDetrForInstanceSegmentation", description)
    # The width of the hidden layer of the head of masks
    return config | {"intermediate_size": EXPANSION * description.fields["channels"]}


def _describe(architecture: str, description: Description) -> dict[str, Any]:
    fields = description.fields
    config = configuration("rf_detr", architecture, {**FIELDS, **SIZES}, description)
    patch = fields["strides"][0]
    return config | {
        # Its defaults differ from Roboflow's.
        "layer_norm_eps": 1e-6,
        "dropout": fields["dropout"],
        "backbone_config": {
            "model_type": "rf_detr_dinov2",
            "hidden_size": fields["vit_width"],
            "num_hidden_layers": fields["vit_depth"],
            "num_attention_heads": fields["vit_heads"],
            "patch_size": patch,
            "image_size": patch * fields["position_grid"],
            "num_windows": fields["num_windows"],
            "out_indices": [block + 1 for block in fields["map_blocks"]],
        },
    }


HUGGING_FACE_RF_DETR = replace(
    ROBOFLOW_RF_DETR,
    title="Hugging Face's RF-DETR",
    options=options,
    categories=categories,
    matches_metadata=is_of_transformers,
    averages=(),
    has_unused_class=False,
    describe=describe,
)
HUGGING_FACE_RF_DETR_SEG = replace(
    ROBOFLOW_RF_DETR_SEG,
    title="Hugging Face's RF-DETR-Seg",
    options=options,
    categories=categories,
    matches_metadata=is_of_transformers,
    averages=(),
    has_unused_class=False,
    describe=describe_with_masks,
)
# Names of modules in memory
HUGGING_FACE_RF_DETR_MODULES = replace(
    HUGGING_FACE_RF_DETR,
    title="Hugging Face's RF-DETR in memory",
    signature=(
        "model.backbone.backbone.embeddings.cls_token",
        "model.backbone.projector.projector_layer.*",
        "model.enc_output.#.weight",
        "model.query_feat.weight",
    ),
    names=DETECTOR_MODULES,
    matches_metadata=lambda _: True,
    describe=None,
)
