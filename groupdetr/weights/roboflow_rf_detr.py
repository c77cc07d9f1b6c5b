"""Roboflow's checkpoints of RF-DETR and RF-DETR-Seg (github.com/roboflow/rf-detr).

They are .pth files of its training, Lightning's .ckpt files, and the published ones. The classes of
its own training are numbered from 0, and the class head has one row more, which no object has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.windowed_vit_names import HUGGING_FACE_DINOV2
from groupdetr.weights.coco_names import COCO_91, UNUSED_CLASS
from groupdetr.weights.metadata_fields import CATEGORIES, expect_values, named_fields
from groupdetr.weights.objects365_names import OBJECTS365
from groupdetr.weights.official_lw_detr import (
    REQUIRED,
    detector_names,
    is_written,
    with_num_points,
)
from groupdetr.weights.windowed_vit_sizes import find_preset, integers, sizes_of_network

# Names of its classes -> presets
MODELS = {
    "RFDETRNano": "rf-detr-nano",
    "RFDETRSmall": "rf-detr-small",
    "RFDETRMedium": "rf-detr-medium",
    "RFDETRLarge": "rf-detr-large",
    "RFDETRBase": "rf-detr-base",
    "RFDETRLargeDeprecated": "rf-detr-large-deprecated",
}
SEGMENTATION_MODELS = {
    "RFDETRSegNano": "rf-detr-seg-nano",
    "RFDETRSegSmall": "rf-detr-seg-small",
    "RFDETRSegMedium": "rf-detr-seg-medium",
    "RFDETRSegLarge": "rf-detr-seg-large",
    "RFDETRSegXLarge": "rf-detr-seg-xlarge",
    "RFDETRSeg2XLarge": "rf-detr-seg-2xlarge",
    "RFDETRSegPreview": "rf-detr-seg-preview",
}
# Detectors of the package rfdetr_plus, whose patches have this side
PLUS_MODELS = ("RFDETRXLarge", "RFDETR2XLarge")
PLUS_PATCH = 20
# Their encoders, by the width of the ViT
ENCODERS_OF_WIDTH = {384: "dinov2_windowed_small", 768: "dinov2_windowed_base"}
# Sizes that distinguish the presets; the table of positions depends on the size of the images
PRESET_FIELDS = ("vit_width", "vit_depth", "strides", "channels", "decoder_layers")
POSITIONS = ("position_grid",)
# The side of the images, in pixels, of DINOv2's own table of positions
DINOV2_SIDE = 518
COCO_80 = [name for name in COCO_91 if name != "N/A"]

BACKBONE = "backbone.0.encoder.encoder."
MASK_TOKEN = f"{BACKBONE}embeddings.mask_token"


def names(projector: str) -> Names:
    """Return the table; ``projector`` is how our names of the projector begin."""
    return {
        "_kp_active_mask": (),  # of versions with key points; it is empty in a detector
        **with_prefixes(HUGGING_FACE_DINOV2, BACKBONE, "backbone.network."),
        **detector_names(projector),
    }


NAMES = names("encoder.")

# The head of masks
MASKS: Names = {
    "blocks.#.dwconv.*": "encoder.blocks.#.depthwise.*",
    "blocks.#.norm.*": "encoder.blocks.#.norm.*",
    "blocks.#.pwconv1.*": "encoder.blocks.#.pointwise.*",
    "query_features_block.norm_in.*": "decoder.heads.0.mask_embed.norm.*",
    "query_features_block.layers.0.*": "decoder.heads.0.mask_embed.expand.*",
    "query_features_block.layers.2.*": "decoder.heads.0.mask_embed.contract.*",
    "query_features_proj.*": "decoder.heads.0.mask_embed.query_proj.*",
    "spatial_features_proj.*": "decoder.heads.0.mask_embed.pixel_proj.*",
    "bias": "decoder.heads.0.mask_embed.bias",
}
SEGMENTATION_NAMES: Names = {
    **names("encoder.encoder."),
    **with_prefixes(MASKS, "segmentation_head.", ""),
}

# Entries of the model's configuration, or of the arguments of older versions -> recipe fields
FIELDS = {
    "sa_nheads": "num_heads",
    "ca_nheads": "cross_attention_heads",
    "num_select": "num_detections",
    "num_windows": "num_windows",
}
# Other entries -> recipe fields. They follow from the tensors, so they are only written.
SIZES = {
    "hidden_dim": "channels",
    "dec_layers": "decoder_layers",
    "dec_n_points": "num_points",
    "num_queries": "num_queries",
    "group_detr": "num_groups",
    "positional_encoding_size": "position_grid",
}


def check(file: Checkpoint) -> None:
    """Raise `WeightsError` for a detector that this library leaves out."""
    name = _description(file.metadata).get("model_name", file.metadata.get("model_name"))
    patch_conv = file.state.get(f"{BACKBONE}embeddings.patch_embeddings.projection.weight")
    has_plus_patch = patch_conv is not None and patch_conv.shape[-1] == PLUS_PATCH
    if name in PLUS_MODELS or has_plus_patch:
        raise WeightsError(
            "these are weights of RF-DETR-XL or RF-DETR-2XL for boxes, whose licence (PML 1.0) is "
            "not Apache-2.0, so this library leaves them out",
            file.where,
            "choose another model; rf-detr-large is the largest one for boxes, and RF-DETR-Seg has "
            "an XL and a 2XL under Apache-2.0",
        )
    if any("keypoint" in tensor_name for tensor_name in file.state):
        raise WeightsError(
            "these are weights of an RF-DETR for key points, and this library detects boxes and "
            "masks",
            file.where,
            "choose a model for boxes (rf-detr-...) or masks (rf-detr-seg-...)",
        )


def _description(metadata: Metadata) -> Metadata:
    """Return the configuration of the model, or the arguments of the training of older versions."""
    config = metadata.get("model_config")
    return config if isinstance(config, Mapping) else metadata


def options(file: Checkpoint) -> RecipeFields:
    """Return the recipe fields that the tensors and the configuration of the model give.

    `WeightsError` if it is the configuration of another network than ours.
    """
    config = _description(file.metadata)
    expect_values(REQUIRED, config, file.where)
    fields = {**sizes_of_network(file.state), **named_fields(FIELDS, config)}
    if config.get("out_feature_indexes") is not None:
        maps = integers(config["out_feature_indexes"])
        fields["map_blocks"] = tuple(number - 1 for number in maps)
        fields["global_blocks"] = global_blocks(maps, fields["vit_depth"])
    return with_num_points(fields, file)


def global_blocks(maps: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the blocks, from 0, that attend globally, given the numbers, from 1, of those of maps.

    Its code takes these numbers as counted from 0: the blocks after those of the maps are global.
    """
    return tuple(block for block in range(depth) if block in maps or block > maps[-1])


def categories(metadata: Metadata) -> list[IdAndName]:
    """Return the classes by row. The last row of a head of its own training is not among them.

    Its training numbers the classes of any data set from 0, except those of COCO's own folders.
    """
    if CATEGORIES in metadata:
        return [(id, name) for id, name in metadata[CATEGORIES]]
    class_names = metadata.get("class_names")
    num_classes = _description(metadata).get("num_classes")
    dataset = metadata.get("dataset_file")
    if isinstance(class_names, Mapping):  # row -> name
        named = {int(row): str(name) for row, name in class_names.items()}
        return [(row, named.get(row, "N/A")) for row in range(max(named, default=-1) + 1)]
    if dataset == "o365":
        return list(enumerate(OBJECTS365))
    if class_names and (list(class_names) != COCO_80 or num_classes == len(COCO_80)):
        # The rows of an annotation file that was not renumbered are ids, which are not recorded.
        is_numbered = dataset != "coco"
        return [(row, str(name)) for row, name in enumerate(class_names)] if is_numbered else []
    return list(enumerate(COCO_91))


def preset(file: Checkpoint) -> str:
    """Return the preset of the model's name, or the one whose sizes the file has."""
    return _preset_of(file, MODELS)


def segmentation_preset(file: Checkpoint) -> str:
    """Return the preset of RF-DETR-Seg of the model's name, or the one of the file's sizes."""
    return _preset_of(file, SEGMENTATION_MODELS)


def _preset_of(file: Checkpoint, models: Mapping[str, str]) -> str:
    name = file.metadata.get("model_name") or _description(file.metadata).get("model_name")
    if isinstance(name, str) and name in models:
        return models[name]
    return find_preset(file, tuple(models.values()), PRESET_FIELDS, optional=POSITIONS)


def image_size(file: Checkpoint) -> int | None:
    """Return the side of the images in pixels: the recorded one, or that of the position table."""
    for metadata in (_description(file.metadata), file.metadata):
        side = metadata.get("resolution", metadata.get("imgsz"))
        if type(side) is int and side > 0:
            return side
    fields = sizes_of_network(file.state)
    side = fields["strides"][0] * fields["position_grid"]
    # The tables of base and of the old large are those of DINOv2, for images of 518 pixels.
    return None if side == DINOV2_SIDE else side


def add_mask_token(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the embedding of masked patches, which its code has and never uses. It is zero."""
    class_token = theirs[f"{BACKBONE}embeddings.cls_token"]  # [1,1,w]
    return theirs | {MASK_TOKEN: torch.zeros_like(class_token[0])}


def has_unused_row(classes: Sequence[tuple[int | str, str]]) -> bool:
    """True if the last of the classes is none, or if they are the rows of COCO, which has no such.

    The 91 rows of the published files are COCO's ids from 0 to 90.
    """
    return classes[-1][1] == UNUSED_CLASS or list(classes) == list(enumerate(COCO_91))


def describe(description: Description) -> dict[str, Any]:
    """Return the arguments of its training that describe a detector."""
    fields, classes = description.fields, list(description.categories)
    is_coco = classes == list(enumerate(COCO_91))
    # Its code adds one row to the head, which no class has.
    num_classes = len(classes) - 1 if has_unused_row(classes) else len(classes)
    names = COCO_80 if is_coco else [name for _, name in classes[:num_classes]]
    return {
        **{theirs: fields[ours] for theirs, ours in {**FIELDS, **SIZES}.items()},
        "encoder": ENCODERS_OF_WIDTH.get(fields["vit_width"], ""),
        "patch_size": fields["strides"][0],
        "out_feature_indexes": [block + 1 for block in fields["map_blocks"]],
        "projector_scale": list(fields["projector_levels"]),
        "resolution": description.imgsz,
        "num_classes": num_classes,
        "class_names": names,
        CATEGORIES: [[id, name] for id, name in classes],
        "imgsz": description.imgsz,
    }


def is_not_of_transformers(metadata: Metadata) -> bool:
    """True unless the file is one of transformers, which has the same names."""
    return metadata.get("model_type") != "rf_detr"


SIGNATURE = (
    f"{BACKBONE}embeddings.cls_token",
    "backbone.0.projector.stages.#.*",
    "transformer.enc_output.#.weight",
    "query_feat.weight",
)
ROBOFLOW_RF_DETR = Layout(
    title="Roboflow's RF-DETR",
    preset=preset,
    signature=SIGNATURE,
    names=NAMES,
    options=options,
    categories=categories,
    matches_metadata=is_not_of_transformers,
    check=check,
    averages=("ema_model", "legacy_ema_state_dict"),
    has_unused_class=True,
    image_size=image_size,
    add_dropped=add_mask_token,
    is_written=is_written,
    describe=describe,
)
ROBOFLOW_RF_DETR_SEG = replace(
    ROBOFLOW_RF_DETR,
    title="Roboflow's RF-DETR-Seg",
    preset=segmentation_preset,
    signature=(*SIGNATURE, "segmentation_head.bias"),
    names=SEGMENTATION_NAMES,
)
