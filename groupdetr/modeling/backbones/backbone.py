"""From pixels to feature maps: a network, with what detectors freeze of it and how fast its layers learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Layers:
    """The layers of a network, where each learns slower than the one after it and their norms are not decayed."""

    names: tuple[str, ...] = ()  # of submodules, first to last
    stem: str = ""  # what comes before them
    stem_factor: float = 1.0  # of its rate, whatever the decay


class Backbone(nn.Module):
    """Images [...,3,H,W] -> feature maps [B,C,.,.] of all of them in turn, fine to coarse.

    ``frozen`` names the submodules that do not learn; images are padded with zeros to a ``multiple`` of pixels, after
    they went through ``augment``.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: Sequence[int],
        frozen: tuple[str, ...] = (),
        layers: Layers | None = None,
        multiple: int = 1,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.channels, self.layers, self.multiple = list(channels), layers or Layers(), multiple
        self.augment = augment or nn.Identity()
        for name in frozen:
            network.get_submodule(name).requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        pixels = self.augment(pixels.flatten(0, -4))
        if self.multiple > 1:
            pixels = pad_to_multiple(pixels, self.multiple)
        return self.network(pixels.contiguous(memory_format=torch.channels_last))

    @property
    def has_layers(self) -> bool:
        return bool(self.layers.names)

    def rate_factor(self, name: str, decay: float) -> float:
        """Of the rate of parameter ``name``: ``decay`` once for its layer and once for every later one."""
        if self.layers.stem and _inside(name, self.layers.stem):
            return self.layers.stem_factor
        layer = self._layer(name)
        return 1.0 if layer is None else decay ** (len(self.layers.names) - layer)

    def is_decayed(self, name: str) -> bool:
        """Does weight decay pull at parameter ``name``?"""
        norm = isinstance(self.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)
        return not (norm and self._layer(name) is not None)

    def _layer(self, name: str) -> int | None:
        return next((i for i, layer in enumerate(self.layers.names) if _inside(name, layer)), None)


def _inside(name: str, module: str) -> bool:
    """Is this parameter of the backbone one of that module of its network?"""
    return name.startswith(f"network.{module}.")


def pad_to_multiple(pixels: Tensor, size: int) -> Tensor:
    """Zeros to the right and below, until both sides are a multiple of ``size``: [B,C,H,W] -> [B,C,H',W']."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % size, 0, -height % size))
