"""Looking at the image: masked cross-attention (Mask2Former, Cheng et al. 2022, Sec. 3.2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.groups import end_to_end
from groupdetr.modeling.attention.multihead import View, attend, split_heads
from groupdetr.modeling.attention.self_attention import projections
from groupdetr.structures.memory import PixelMemory


class MaskedCrossAttention(nn.Module):
    """Queries [B,K,N,C] look at one level of the memory, each inside its mask -> [B,K,N,C].

    The mask is told by its embedding, the aim [B,K,N,C], and evaluated at the size of the level.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float, level: int) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.level = num_heads, dropout, level
        self.query, self.key, self.value, self.output = projections(channels)

    def view(self, memory: PixelMemory) -> View:
        """Keys and values [B,heads,S,C/heads] of the level's S tokens, and the pixels that tell a mask there [B,C,S],
        which learn nothing from it."""
        tokens, position = (
            memory.levels(x)[self.level].flatten(1, 2) for x in (memory.tokens, memory.position)
        )
        pixels = F.interpolate(
            memory.canvas.pixels.detach(),
            memory.shapes[self.level],
            mode="bilinear",
            align_corners=False,
        )
        key, value = self.key(tokens + position), self.value(tokens)
        return (
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
            pixels.flatten(2),
        )

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        aim: Tensor,
        memory: PixelMemory,
        view: View | None = None,
    ) -> Tensor:
        key, value, pixels = view or self.view(memory)
        query = split_heads(self.query(end_to_end(content + position)), self.num_heads)
        blocked = outside(end_to_end(aim), pixels).unsqueeze(1)
        seen = attend(query, key, value, blocked, self.dropout if self.training else 0.0)
        return self.output(seen).reshape(content.shape)


@torch.no_grad()
def outside(embedding: Tensor, pixels: Tensor) -> Tensor:
    """Where masks of ``embedding`` [B,N,C] are not, on pixels [B,C,S]: [B,N,S] bool. A mask that is nowhere blocks
    nothing."""
    blocked = embedding.to(pixels.dtype) @ pixels < 0  # a probability below one half
    return blocked & ~blocked.all(-1, keepdim=True)
