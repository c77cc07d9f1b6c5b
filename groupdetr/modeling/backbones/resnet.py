"""Residual networks: ResNet-50 as all official detectors have it, and a small one to train from scratch."""

from __future__ import annotations

from typing import Any

from torch import nn

from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.frozen_batch_norm import freeze_norms
from groupdetr.modeling.backbones.pretrained import create
from groupdetr.modeling.backbones.pretrained_layouts import RESNET

FROZEN = ("conv1", "layer1")  # in all official detectors


def resnet50(
    pretrained: bool | str,
    dilated: bool = False,
    levels: tuple[int, ...] = (4,),
    frozen: tuple[str, ...] = FROZEN,
    multiple: int = 1,
) -> Backbone:
    """ResNet-50's stages ``levels`` with frozen batch norm and more that is ``frozen``.

    Stage s has stride 2 ** (s + 1) and 128 * 2 ** s channels. ``dilated`` (DC5): stage 4 keeps stride 16; its first
    block has dilation 1 and the others 2, as torchvision's. ``pretrained``: True for ImageNet V1 weights through the
    hub, or the path of a local file with them.
    """
    network = _features("resnet50.tv_in1k", pretrained, levels, output_stride=16 if dilated else 32)
    channels = network.feature_info.channels()  # type: ignore[union-attr, operator]
    return Backbone(freeze_norms(network), channels, frozen, multiple=multiple)


def small_resnet(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    levels: tuple[int, ...] | None = None,
    multiple: int = 1,
    augment: nn.Module | None = None,
) -> Backbone:
    """A small ResNet with group norm, never pretrained; stage s has stride 2 ** (s + 1). ``levels``: the stages to
    return, by default the last one alone.

    Group norm does not mix pictures, so a batch may be cut into pieces without a difference. Residual branches start
    switched on, unlike timm's default: there are few of them, and little time.
    """
    unused = 4 - len(
        widths
    )  # timm builds four stages and drops what comes after the last one asked for
    stages = {"channels": (*widths, *[widths[-1]] * unused), "layers": (*depths, *[1] * unused)}
    options = {"norm_layer": "groupnorm1", "stem_width": widths[0] // 2, "zero_init_last": False}
    network = _features("resnet10t", False, levels or (len(widths),), **stages, **options)
    channels = network.feature_info.channels()  # type: ignore[union-attr, operator]
    return Backbone(network, channels, multiple=multiple, augment=augment)


def _features(
    name: str, pretrained: bool | str, levels: tuple[int, ...], **options: Any
) -> nn.Module:
    """The stages ``levels`` of a timm network, and what comes before them."""
    return create(name, pretrained, (RESNET,), features_only=True, out_indices=levels, **options)
