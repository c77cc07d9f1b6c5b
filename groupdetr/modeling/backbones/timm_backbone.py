"""Any network of timm as a backbone: its feature maps, by their strides."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import timm.models
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.models.resnet import Bottleneck
from torch import nn

from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.backbone import Backbone, LayerDecay
from groupdetr.modeling.backbones.folded_bottleneck import fold_bottlenecks
from groupdetr.modeling.backbones.frozen_batch_norm import fold_norms
from groupdetr.modeling.backbones.input_normalisation import InputNormalisation
from groupdetr.modeling.backbones.timm_network import TimmNetwork
from groupdetr.modeling.backbones.timm_structure import TimmStructure, examine
from groupdetr.modeling.backbones.timm_weights import create_timm_network
from groupdetr.modeling.frozen import freeze_batch_norms
from groupdetr.structures.images import IMAGENET_MEAN, IMAGENET_STD

# Networks whose submodules are in the order in which they are applied
IN_ORDER = (timm.models.ResNet, timm.models.EfficientNet)


def timm_backbone(
    name: str,
    pretrained: bool | str,
    strides: Sequence[int],
    frozen_stages: int = -1,
    freeze_norms: bool = False,
    dilated: bool = False,
    recompute: bool = False,
    multiple: int = 1,
    augment: nn.Module | None = None,
    bgr: bool = False,
) -> Backbone:
    """Return timm's network ``name``, such as ``"convnext_tiny.fb_in22k"``, as a backbone.

    Its maps have the given ``strides``, from fine to coarse. Images may have any size: they are
    padded with zeros as far as the network needs it. Images are normalised by the constants that
    the weights ``name`` were trained with.

    ``pretrained`` is True for the weights of the hub, the path of a local file of timm's, or False
    for random weights.

    ``frozen_stages`` is the number of stages that are not trained, as in mmdetection: -1 trains
    all, 0 freezes the stem, 1 the stem and the first stage, and so on. The stem ends at the map of
    stride 2, or where timm lists none, at the first stage; every other map that timm lists ends a
    stage. In a plain Vision Transformer a stage is a block. Frozen stages are always in evaluation
    mode.

    ``freeze_norms`` fixes statistics, scale and shift of all batch norms. Other norms are trained.

    With ``dilated`` (DC5), the last stage keeps stride 16. ``recompute`` turns on gradient
    checkpointing where timm supports it. ``multiple`` and ``augment`` as in `Backbone`. With
    ``bgr``, the images have the channel order blue, green, red.

    `UsageError` if the network cannot serve, `WeightsError` if its weights cannot be loaded.
    """
    structure = examine(name, tuple(strides), dilated)
    frozen = _frozen_parameters(name, structure, frozen_stages)
    network = create_timm_network(name, pretrained, structure.options, structure.used)
    network.prune_intermediate_layers(list(structure.indices), prune_norm=True, prune_head=True)
    for parameter_name, parameter in network.named_parameters():
        # Some networks compute more than the maps that are used. A parameter without a gradient
        # must not wait for one in distributed training.
        if parameter_name in frozen or parameter_name not in structure.used:
            parameter.requires_grad_(False)
    if recompute:
        with suppress(AssertionError):  # timm's answer of a network without checkpointing
            network.set_grad_checkpointing()
    if freeze_norms:
        if isinstance(network, IN_ORDER):
            fold_norms(network, Conv2dSame, BatchNormAct2d)
            fold_bottlenecks(network, Bottleneck)
        freeze_batch_norms(network)

    mean, std = structure.mean, structure.std
    is_converted = bgr or (mean, std) != (IMAGENET_MEAN, IMAGENET_STD)
    layers = tuple(tuple(f"model.{p}" for p in sorted(stage)) for stage in structure.stages)
    return Backbone(
        TimmNetwork(network, structure.indices, strides, structure.multiple),
        structure.channels,
        layer_decay=LayerDecay(layers),
        multiple=multiple,
        augment=augment,
        normalisation=InputNormalisation(mean, std, bgr) if is_converted else None,
    )


def _frozen_parameters(name: str, structure: TimmStructure, frozen_stages: int) -> frozenset[str]:
    """Return the names of the parameters of the stem and of the first ``frozen_stages`` stages."""
    last = len(structure.stages) - 1
    if not -1 <= frozen_stages <= last:
        raise UsageError(
            f"frozen_stages is {frozen_stages}, and {name} has {last} stages",
            "",
            f"choose a number from -1 (all is trained) and 0 (stem) to {last} (all is frozen)",
        )
    return frozenset().union(*structure.stages[: frozen_stages + 1])
