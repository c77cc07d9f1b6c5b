"""The backbones by name: those of the published detectors, any network of timm, and your own.

A recipe has the name of its backbone as a field. `register_backbone` adds one.

The modules of Swin, ViT-Huge and timm's other networks are imported where they are built. They
import timm, which takes longer to import than PyTorch, and few detectors need them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.efficientnet_lite import (
    LITE0,
    LITE0_STAGES,
    LITE0_STRIDES,
    efficientnet_lite0,
    installed_weights,
)
from groupdetr.modeling.backbones.input_normalisation import InputNormalisation
from groupdetr.modeling.backbones.resnet import RESNET50, resnet50, small_resnet
from groupdetr.modeling.backbones.vovnet import vovnet99
from groupdetr.modeling.backbones.windowed_vit import (
    WindowedViTSizes,
    lw_detr_vit,
    windowed_dinov2,
)
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD

# The names of timm for the backbones of the published detectors. These are built exactly as in the
# detectors' official code.
SWIN_LARGE = "swin_large_patch4_window12_384.ms_in22k"
VIT_HUGE = "vit_huge_patch14_224.mae"
LW_DETR_VIT = "lw_detr_vit"  # LW-DETR's ViT and RF-DETR's DINOv2, in sizes that the recipe states
WINDOWED_DINOV2 = "windowed_dinov2"
VOVNET99 = "vovnet99"  # timm has no VoVNet-99 as in DD3D and PETR
# Small networks for a CPU, which are never pretrained on images of the real world.
SMALL_RESNET = "small_resnet"
SMALL_VIT = "small_vit"
NONE_FROZEN = -1  # of ``frozen_stages``


@dataclass(frozen=True)
class BackboneOptions:
    """What a detector needs of its backbone, and how the user wants it."""

    # True: downloaded weights; a path: weights in a local file; False: random weights
    pretrained: bool | str
    strides: tuple[int, ...]  # of the feature maps, from fine to coarse
    dilated: bool  # True: the convolutions of the last stage are dilated, so it keeps stride 16
    # Stages that are not trained, as in mmdetection: -1 none, 0 the stem, 1 the stem and stage 1
    frozen_stages: int
    freeze_norms: bool  # True: batch norms have fixed statistics, scale and shift
    recompute: bool  # gradient checkpointing, where the network supports it
    multiple: int  # images are padded until both sides are a multiple of it, in pixels
    augment: nn.Module | None  # applied to the images
    bgr: bool  # True: the images have the channel order blue, green, red
    channels: int  # of the transformer; only a backbone with its own pyramid uses it
    # of a Vision Transformer with windows; None for detectors that do not state them
    windowed_vit: WindowedViTSizes | None = None


@dataclass(frozen=True)
class BackboneEntry:
    """A backbone that is not one of timm's, or that differs from timm's of the same name."""

    build: Callable[[BackboneOptions], Backbone]
    has_weights: bool  # True if ``pretrained=True`` downloads weights
    can_load: bool = True  # True if ``pretrained`` may be a file


_BACKBONES: dict[str, BackboneEntry] = {}


def register_backbone(
    name: str,
    build: Callable[[BackboneOptions], Backbone],
    *,
    has_weights: bool = False,
    can_load: bool = True,
) -> None:
    """Add a backbone, so that every detector takes its name as ``backbone``.

    ``build`` returns a `Backbone` whose maps have the strides of its `BackboneOptions`. It raises
    `UsageError` for options that it does not support. A backbone of the same name is replaced.
    """
    _BACKBONES[name] = BackboneEntry(build, has_weights, can_load)


def build_backbone(name: str, options: BackboneOptions) -> Backbone:
    """Return the backbone called ``name``. `UsageError` if there is none, or if it cannot serve."""
    if name in _BACKBONES:
        return _BACKBONES[name].build(options)
    return build_timm_backbone(name, options)


def build_timm_backbone(name: str, options: BackboneOptions) -> Backbone:
    """Return timm's network ``name`` as a backbone."""
    from groupdetr.modeling.backbones.timm_backbone import timm_backbone  # imports timm

    return timm_backbone(
        name,
        options.pretrained,
        options.strides,
        options.frozen_stages,
        options.freeze_norms,
        options.dilated,
        options.recompute,
        options.multiple,
        options.augment,
        options.bgr,
    )


def has_weights(name: str) -> bool:
    """Return whether pretrained weights of the backbone can be downloaded.

    `UsageError` if timm does not know the name.
    """
    if name in _BACKBONES:
        return _BACKBONES[name].has_weights
    # These import timm.
    import timm

    from groupdetr.modeling.backbones.timm_structure import require_known

    require_known(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config is not None and config.has_weights)


def can_load(name: str) -> bool:
    """Return whether the backbone can start from weights, downloaded or in a file."""
    return name not in _BACKBONES or _BACKBONES[name].can_load


# The backbones of the published detectors


def _resnet50(options: BackboneOptions) -> Backbone:
    if not options.freeze_norms:
        return build_timm_backbone(RESNET50, options)
    levels = (4,) if options.dilated else resnet_levels(RESNET50, options)
    backbone = resnet50(options.pretrained, options.dilated, levels, frozen=())
    # There are no stages after the last one whose map is used.
    return complete(backbone, options, ["conv1", *[f"layer{i}" for i in range(1, levels[-1] + 1)]])


def _swin_large(options: BackboneOptions) -> Backbone:
    from groupdetr.modeling.backbones.swin import swin_large  # imports timm

    expect_strides(SWIN_LARGE, options, (8, 16, 32))
    backbone = swin_large(options.pretrained, options.recompute)
    return complete(backbone, options, ["patch_embed", *[f"layers.{i}" for i in range(4)]])


def _vit_huge(options: BackboneOptions) -> Backbone:
    from groupdetr.modeling.backbones.vit import HUGE, vit_huge  # imports timm

    expect_strides(VIT_HUGE, options, (8, 16, 32, 64))
    sizes = replace(HUGE, channels=options.channels)
    backbone = vit_huge(options.pretrained, options.recompute, sizes)
    return complete(backbone, options, vit_stages(sizes.depth))


def _vovnet99(options: BackboneOptions) -> Backbone:
    expect_strides(VOVNET99, options, (16, 32))
    backbone = vovnet99(options.pretrained, options.recompute, options.augment or nn.Identity())
    # The published weights are for the channel order blue, green, red.
    options = replace(options, bgr=False)
    return complete(backbone, options, ["stem", *[f"stages.{i}" for i in range(4)]])


def _small_resnet(options: BackboneOptions) -> Backbone:
    """Return the backbone of the -tiny presets, which has as many stages as the strides need."""
    if options.frozen_stages > NONE_FROZEN or options.dilated:
        raise UsageError(
            f"{SMALL_RESNET} is trained from random weights, without frozen stages or dilation",
            remedy="set frozen_stages=-1 and dilated=false, or choose another backbone",
        )
    levels = resnet_levels(SMALL_RESNET, options)
    num_stages = levels[-1]
    return small_resnet(
        widths=(32, 64, 96, 96)[:num_stages],
        depths=(1, 2, 1, 1)[:num_stages],
        levels=levels,
        multiple=options.multiple,
        augment=options.augment,
    )


def _small_vit(options: BackboneOptions) -> Backbone:
    """Return the backbone of `dino-vit-tiny`, which runs the code of ViT-Huge at a small size."""
    from groupdetr.modeling.backbones.vit import SMALL, vit_huge  # imports timm

    expect_strides(SMALL_VIT, options, (8, 16, 32, 64))
    sizes = replace(SMALL, channels=options.channels)
    backbone = vit_huge(options.pretrained, options.recompute, sizes)
    return complete(backbone, options, vit_stages(sizes.depth))


def _lw_detr_vit(options: BackboneOptions) -> Backbone:
    sizes = windowed_vit_sizes(LW_DETR_VIT, options)
    backbone = lw_detr_vit(sizes, options.recompute, options.pretrained)
    return complete(backbone, options, windowed_vit_stages(sizes))


def _windowed_dinov2(options: BackboneOptions) -> Backbone:
    sizes = windowed_vit_sizes(WINDOWED_DINOV2, options)
    backbone = windowed_dinov2(sizes, options.recompute, options.pretrained)
    return complete(backbone, options, windowed_vit_stages(sizes))


def _efficientnet_lite0(options: BackboneOptions) -> Backbone:
    """Return EfficientNet-Lite0, with the weights that are installed if there are any."""
    weights = installed_weights() if options.pretrained is True else None
    has_other_weights = bool(options.pretrained) and weights is None
    if has_other_weights or options.dilated or not set(options.strides) <= set(LITE0_STRIDES):
        # timm downloads and converts weights, has a dilated form, and refuses other strides.
        return build_timm_backbone(LITE0, options)
    expect_frozen_stages(options, len(LITE0_STAGES) - 1)
    return efficientnet_lite0(
        weights,
        options.strides,
        options.frozen_stages,
        options.freeze_norms,
        options.recompute,
        options.multiple,
        options.augment,
        options.bgr,
    )


def vit_stages(depth: int) -> list[str]:
    """Return the names of the stem and the blocks of `vit_huge`."""
    return ["vit.patch_embed", *[f"vit.blocks.{i}" for i in range(depth)]]


def windowed_vit_sizes(name: str, options: BackboneOptions) -> WindowedViTSizes:
    """Return the sizes of a Vision Transformer with windows. `UsageError` if they are not stated.

    All of its maps have the stride of a patch.
    """
    sizes = options.windowed_vit
    if sizes is None:
        raise UsageError(
            f"{name} is a backbone of LW-DETR and RF-DETR, and this detector does not state its "
            "sizes",
            remedy="choose another backbone or detector; docs/backbones.md lists them",
        )
    expect_strides(name, options, (sizes.patch,))
    return sizes


def windowed_vit_stages(sizes: WindowedViTSizes) -> list[str]:
    """Return the names of the stem and the blocks of a Vision Transformer with windows."""
    return ["embed", *[f"blocks.{i}" for i in range(sizes.depth)]]


def resnet_levels(name: str, options: BackboneOptions) -> tuple[int, ...]:
    """Return the stages of a ResNet whose maps have the strides of the options.

    Stage s has stride 2 ** (s + 1). `UsageError` if no stage has one of the strides.
    """
    available = (4, 8, 16, 32)
    if not set(options.strides) <= set(available):
        raise _wrong_strides(name, available, options.strides)
    return tuple(stride.bit_length() - 2 for stride in options.strides)


def expect_strides(name: str, options: BackboneOptions, strides: tuple[int, ...]) -> None:
    """Raise `UsageError` unless the detector needs exactly the maps that the backbone has."""
    if options.dilated:
        raise UsageError(f"{name} has no dilated form", remedy="leave out dilated (DC5)")
    if options.strides != strides:
        raise _wrong_strides(name, strides, options.strides)


def _wrong_strides(name: str, available: tuple[int, ...], needed: tuple[int, ...]) -> UsageError:
    """Return the error for a backbone that does not have the maps that a detector needs."""
    return UsageError(
        f"the maps of {name} have strides {list(available)}, and this detector is to use "
        f"{list(needed)}",
        remedy="change strides, or choose another backbone or detector; docs/backbones.md lists "
        "them",
    )


def complete(backbone: Backbone, options: BackboneOptions, stages: list[str]) -> Backbone:
    """Apply the options that the function of a backbone does not know.

    ``stages`` are the names of the submodules of the stem and of every stage.
    """
    expect_frozen_stages(options, len(stages) - 1)
    for stage in stages[: options.frozen_stages + 1]:
        backbone.network.get_submodule(stage).requires_grad_(False)
    if options.augment is not None:
        backbone.augment = options.augment
    if options.bgr:
        backbone.normalisation = InputNormalisation(IMAGENET_MEAN, IMAGENET_STD, bgr=True)
    backbone.multiple = max(backbone.multiple, options.multiple)
    # Parts that were frozen here are set to evaluation mode.
    return backbone.train(backbone.training)


def expect_frozen_stages(options: BackboneOptions, num_stages: int) -> None:
    """Raise `UsageError` unless the backbone has the stages that are to be frozen."""
    if not NONE_FROZEN <= options.frozen_stages <= num_stages:
        raise UsageError(
            f"frozen_stages is {options.frozen_stages}, and the backbone has {num_stages} stages",
            remedy=f"choose a number from -1 (none is frozen) to {num_stages} (all are)",
        )


register_backbone(RESNET50, _resnet50, has_weights=True)
register_backbone(SWIN_LARGE, _swin_large, has_weights=True)
register_backbone(VIT_HUGE, _vit_huge, has_weights=True)
register_backbone(VOVNET99, _vovnet99)
register_backbone(LITE0, _efficientnet_lite0, has_weights=True)
register_backbone(SMALL_RESNET, _small_resnet, can_load=False)
register_backbone(SMALL_VIT, _small_vit)
register_backbone(LW_DETR_VIT, _lw_detr_vit)
register_backbone(WINDOWED_DINOV2, _windowed_dinov2)
