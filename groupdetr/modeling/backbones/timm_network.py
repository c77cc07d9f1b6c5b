"""A network of timm, or one with the same methods, on images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from groupdetr.modeling.backbones.backbone import cut_map, pad_to_multiple

# The networks of timm have methods in common, but no base class that declares them.
TimmModel = Any


class TimmNetwork(nn.Module):
    """Images [B,3,H,W] of any size -> the maps ``indices`` of timm's ``model``, [B,C_l,H_l,W_l].

    A map of stride s has H/s rows and W/s columns, rounded up. The images are padded with zeros
    until both sides are multiples of ``multiple``, and the part of the maps that shows nothing but
    this padding is removed.
    """

    def __init__(
        self, model: TimmModel, indices: Sequence[int], strides: Sequence[int], multiple: int
    ) -> None:
        super().__init__()
        self.model = model
        self.indices = list(indices)
        self.strides = tuple(strides)
        self.multiple = multiple

    def forward(self, pixels: Tensor) -> list[Tensor]:
        height, width = pixels.shape[-2:]
        all_maps = self.model.forward_intermediates(
            pad_to_multiple(pixels, self.multiple),
            indices=self.indices,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        maps = []
        for x, stride in zip(all_maps, self.strides, strict=True):
            rows, columns = -(-height // stride), -(-width // stride)  # rounded up
            maps.append(cut_map(x, rows, columns, axis=2))
        return maps
