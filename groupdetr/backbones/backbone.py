"""From pixels to feature maps: a network, with the stages frozen that detectors freeze."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Backbone(nn.Module):
    """Images [B,3,H,W] -> feature maps, fine to coarse. ``frozen`` names the submodules that do not learn."""

    def __init__(self, network: nn.Module, channels: Sequence[int], frozen: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.channels = list(channels)
        for name in frozen:
            network.get_submodule(name).requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return self.network(pixels.contiguous(memory_format=torch.channels_last))


def pad_to_multiple(pixels: Tensor, size: int) -> Tensor:
    """Zeros to the right and below, until both sides are a multiple of ``size``: [B,C,H,W] -> [B,C,H',W']."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % size, 0, -height % size))
