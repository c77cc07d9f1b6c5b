"""The position embedding that attention adds to a token or a query: given, scaled by the content, or read off a box."""

from __future__ import annotations

from torch import Tensor, nn

from groupdetr.mlp import MLP
from groupdetr.ops.position import sine_embedding


class Given(nn.Module):
    """As it is, in all layers (DETR, Conditional DETR)."""

    def forward(self, position: Tensor, content: Tensor, reference: Tensor | None = None) -> Tensor:
        del content, reference
        return position


class Scaled(nn.Module):
    """Scaled by the content of every layer (DAB-DETR's encoder): [...,C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = MLP(channels, channels, channels, num_layers=2)

    def forward(self, position: Tensor, content: Tensor, reference: Tensor | None = None) -> Tensor:
        del reference
        return position * self.scale(content)


class OfBox(nn.Module):
    """Read off the box where a query looks, layer after layer: MLP(sine(box)) (DAB-DETR, Liu et al. 2022, Eq. 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * channels, channels, channels, num_layers=2)

    def forward(self, position: Tensor | None, content: Tensor, reference: Tensor) -> Tensor:
        del position
        return self.mlp(sine_embedding(reference, content.shape[-1] // 2).to(reference.dtype))
