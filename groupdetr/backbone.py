"""From pixels to feature maps: a timm network, with the norms and stages frozen that detectors freeze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from groupdetr.errors import WeightsError


class Backbone(nn.Module):
    """Images [B,3,H,W] -> feature maps, fine to coarse. ``frozen`` names the submodules that do not learn."""

    def __init__(self, network: nn.Module, frozen: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.channels: list[int] = network.feature_info.channels()  # type: ignore[union-attr, operator]
        for name in frozen:
            network.get_submodule(name).requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.network(pixels.contiguous(memory_format=torch.channels_last))


def resnet50(pretrained: bool | str, dilated: bool, levels: tuple[int, ...] = (4,)) -> Backbone:
    """ResNet-50's last stage with frozen batch norm, frozen stem and stage 1, as all official detectors have it.

    ``dilated`` (DC5): stage 4 keeps stride 16; its first block has dilation 1 and the others 2, as torchvision's.
    ``pretrained``: True for ImageNet V1 weights through the hub, or the path of a local file with them.
    """
    network = _create("resnet50.tv_in1k", pretrained, out_indices=levels, output_stride=16 if dilated else 32)
    return Backbone(freeze_batch_norm_2d(network), frozen=("conv1", "layer1"))


def _create(name: str, pretrained: bool | str, **options: Any) -> nn.Module:
    """A timm feature extractor, its weights from the hub (True), a file (a path) or random (False)."""
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise WeightsError("no backbone weights there", pretrained, "pass the path of a .pth or .safetensors file")
        options["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        return timm.create_model(name, features_only=True, pretrained=bool(pretrained), **options)
    except OSError as error:  # what hub and http failures derive from
        raise WeightsError(
            f"the weights of {name} could not be fetched: {error}".splitlines()[0],
            f"timm/{name} on the Hugging Face hub",
            "go online once, pass a local file with --pretrained-backbone FILE (pretrained_backbone=FILE), or none",
        ) from error


def small_resnet(widths: tuple[int, ...], depths: tuple[int, ...], levels: tuple[int, ...] = ()) -> Backbone:
    """A small ResNet with group norm, never pretrained; its last stage has stride 2 ** (stages + 1).

    Group norm does not mix pictures, so a batch may be cut into pieces without a difference. Residual branches start
    switched on, unlike timm's default: there are few of them, and little time.
    """
    unused = 4 - len(widths)  # timm builds four stages and drops what comes after the last one asked for
    stages = {"channels": (*widths, *[widths[-1]] * unused), "layers": (*depths, *[1] * unused)}
    options = {"norm_layer": "groupnorm1", "stem_width": widths[0] // 2, "zero_init_last": False}
    return Backbone(_create("resnet10t", False, out_indices=levels or (len(widths),), **stages, **options))
