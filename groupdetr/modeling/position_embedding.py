"""The position embedding that attention adds to a token or a query: given, scaled or gated by the content, or read
off a box.

All are called with what they may need: (position, content, reference, memory), tokens with the first two.
"""

from __future__ import annotations

from torch import Tensor, nn

from groupdetr.modeling.mlp import MLP
from groupdetr.ops.position import sine_embedding
from groupdetr.structures.memory import Memory


class Given(nn.Module):
    """As it is, in all layers (DETR, Conditional DETR)."""

    def forward(self, position: Tensor, content: Tensor, *where: Tensor | Memory) -> Tensor:
        del content, where
        return position


class Scaled(nn.Module):
    """What ``place`` gives, scaled by the content (DAB-DETR's encoder, DAB-Deformable-DETR's decoder): [...,C]."""

    def __init__(self, place: nn.Module, scale: MLP) -> None:
        super().__init__()
        self.place, self.scale = place, scale

    def forward(self, position: Tensor, content: Tensor, *where: Tensor | Memory) -> Tensor:
        return self.place(position, content, *where) * self.scale(content)


class Gated(nn.Module):
    """As it is, as far as the content lets it through (PETRv2, Liu et al. 2023, Sec. 3.2): [...,C]."""

    def __init__(self, gate: MLP) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, position: Tensor, content: Tensor, *where: Tensor | Memory) -> Tensor:
        del where
        return position * self.gate(content).sigmoid()


class OfBox(nn.Module):
    """Read off the box where a query looks, layer after layer: MLP(sine(box)) (DAB-DETR, Liu et al. 2022, Eq. 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = MLP(2 * channels, channels, channels, num_layers=2)

    def forward(
        self, position: Tensor | None, content: Tensor, reference: Tensor, memory: Memory
    ) -> Tensor:
        del position, memory
        return self.mlp(sine_embedding(reference, content.shape[-1] // 2).to(reference.dtype))


class OfPaddedBox(OfBox):
    """Read off the box in the padded image, on its finest level: so in DAB-Deformable-DETR's code and in DINO's."""

    def forward(
        self, position: Tensor | None, content: Tensor, reference: Tensor, memory: Memory
    ) -> Tensor:
        finest = memory.valid_ratios[:, 0].repeat(1, 2)  # [B,4]
        return super().forward(position, content, reference * finest[:, None, None], memory)
