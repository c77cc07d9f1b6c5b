"""The layouts of files with pretrained backbones. Tensors outside of the backbone are dropped."""

from __future__ import annotations

from typing import NoReturn

from groupdetr.checkpoints.checkpoint import Checkpoint
from groupdetr.checkpoints.layout import (
    IdAndName,
    Layout,
    Metadata,
    Names,
    RecipeFields,
    with_prefixes,
)
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.swin_names import OFFICIAL_SWIN_NAMES
from groupdetr.modeling.backbones.vovnet_names import VOVNET_NAMES
from groupdetr.modeling.backbones.windowed_vit_names import (
    HUGGING_FACE_DINOV2,
    LW_DETR_VIT,
    META_DINOV2,
)


def _no_options(file: Checkpoint) -> RecipeFields:
    return {}


def _no_categories(metadata: Metadata) -> list[IdAndName]:
    return []


def refuse_backbone_only(file: Checkpoint) -> NoReturn:
    """Raise `WeightsError`: a detector is needed, and the file has a backbone only."""
    raise WeightsError(
        "this file has the weights of a backbone only, and not of a detector",
        file.where,
        "train a detector from it: groupdetr train --pretrained-backbone FILE",
    )


def _layout(title: str, signature: tuple[str, ...], names: Names) -> Layout:
    return Layout(title, refuse_backbone_only, signature, names, _no_options, _no_categories)


RESNET = _layout(
    "torchvision's ResNet",
    ("bn1.weight", "layer4.0.downsample.0.weight"),
    # timm's names are the same.
    {"fc.*": (), "*.num_batches_tracked": (), "*": "*"},
)

OFFICIAL_SWIN = _layout(
    "the authors' Swin Transformer",
    ("layers.0.downsample.reduction.weight",),
    {"head.*": (), **OFFICIAL_SWIN_NAMES, "norm.*": "norm.*"},
)
TIMM_SWIN = _layout(
    "timm's Swin Transformer", ("layers.3.downsample.reduction.weight",), {"head.*": (), "*": "*"}
)

# The names of the authors' files, of timm's and of detectron2's.
MAE = _layout(
    "a Vision Transformer trained by MAE",
    ("patch_embed.proj.weight", "blocks.#.attn.qkv.weight"),
    {
        "cls_token": (),
        "pos_embed": (),
        "mask_token": (),
        "norm.*": (),
        "fc_norm.*": (),
        "head.*": (),
        "decoder_*": (),
        "patch_embed.*": "patch_embed.*",
        "blocks.*": "blocks.*",
    },
)

PETR_VOVNET = _layout(
    "PETR's or FCOS3D's VoVNet",
    ("img_backbone.stem.stem_1/conv.weight",),
    {**with_prefixes(VOVNET_NAMES, "img_backbone.", ""), "*": ()},
)
DD3D_VOVNET = _layout(
    "DD3D's VoVNet",
    ("backbone.bottom_up.stem.stem_1/conv.weight",),
    {**with_prefixes(VOVNET_NAMES, "backbone.bottom_up.", ""), "*": ()},
)

# Files of DINOv2 with registers are refused by the names of the registers, which RF-DETR lacks.
DINOV2 = _layout(
    "Hugging Face's DINOv2",
    ("embeddings.cls_token", "encoder.layer.#.layer_scale#.lambda1"),
    HUGGING_FACE_DINOV2,
)
OFFICIAL_DINOV2 = _layout(
    "Meta's DINOv2", ("patch_embed.proj.weight", "blocks.#.ls#.gamma"), META_DINOV2
)

# The encoder of CAE v2. LW-DETR's code ignores all other tensors, too.
CAE = _layout(
    "a Vision Transformer trained by CAE v2",
    ("pos_embed", "blocks.#.gamma_1", "blocks.#.attn.q_bias"),
    {**LW_DETR_VIT, "*": ()},
)

BACKBONES = (
    RESNET,
    OFFICIAL_SWIN,
    TIMM_SWIN,
    MAE,
    PETR_VOVNET,
    DD3D_VOVNET,
    DINOV2,
    OFFICIAL_DINOV2,
    CAE,
)
