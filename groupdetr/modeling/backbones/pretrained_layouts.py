"""Files that backbones start from, as layouts: what is no part of the backbone is dropped."""

from __future__ import annotations

from typing import Any, NoReturn

from groupdetr.checkpoints.layout import Category, Facts, Layout, Names, within
from groupdetr.checkpoints.reading import Checkpoint
from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.swin_names import SWIN
from groupdetr.modeling.backbones.vovnet_names import VOVNET


def _no_options(facts: Facts) -> dict[str, Any]:
    del facts
    return {}


def _no_categories(facts: Facts) -> list[Category]:
    del facts
    return []


def backbone_alone(file: Checkpoint) -> NoReturn:
    """There is no detector in it."""
    raise WeightsError(
        "these are weights of a backbone alone", file.where, "--pretrained-backbone FILE takes them"
    )


def _layout(title: str, signature: tuple[str, ...], names: Names) -> Layout:
    return Layout(title, backbone_alone, signature, names, _no_options, _no_categories)


RESNET = _layout(
    "torchvision's ResNet",
    ("bn1.weight", "layer4.0.downsample.0.weight"),
    {"fc.*": (), "*.num_batches_tracked": (), "*": "*"},
)  # timm's names are the same

OFFICIAL_SWIN = _layout(
    "the authors' Swin Transformer",
    ("layers.0.downsample.reduction.weight",),
    {"head.*": (), **SWIN, "norm.*": "norm.*"},
)
TIMM_SWIN = _layout(
    "timm's Swin Transformer", ("layers.3.downsample.reduction.weight",), {"head.*": (), "*": "*"}
)
MAE = _layout(
    "a Vision Transformer trained by MAE",
    ("patch_embed.proj.weight", "blocks.#.attn.qkv.weight"),
    {
        **dict.fromkeys(
            ("cls_token", "pos_embed", "mask_token", "norm.*", "fc_norm.*", "head.*", "decoder_*"),
            (),
        ),
        "patch_embed.*": "patch_embed.*",
        "blocks.*": "blocks.*",
    },
)  # the authors' names, timm's and detectron2's

PETR_VOVNET = _layout(
    "PETR's or FCOS3D's VoVNet",
    ("img_backbone.stem.stem_1/conv.weight",),
    {**within(VOVNET, "img_backbone.", ""), "*": ()},
)
DD3D_VOVNET = _layout(
    "DD3D's VoVNet",
    ("backbone.bottom_up.stem.stem_1/conv.weight",),
    {**within(VOVNET, "backbone.bottom_up.", ""), "*": ()},
)
BACKBONES = (RESNET, OFFICIAL_SWIN, TIMM_SWIN, MAE, PETR_VOVNET, DD3D_VOVNET)
