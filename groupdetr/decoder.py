"""The one decoder loop of all detectors: compete, look, think, say, and look again, better aimed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from groupdetr.groups import Compete
from groupdetr.structures import Memory, Predictions, Queries

Update = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (head, content [B,K,N,C], reference) -> next reference


def keep(head: nn.Module, content: Tensor, reference: Tensor) -> Tensor:
    """Conditional DETR: a query looks at the same point in all layers."""
    del head, content
    return reference


class DecoderLayer(nn.Module):
    """[B,K,N,C] -> [B,K,N,C], each of three steps followed by a norm. ``compete`` says who attends to whom.

    A query aims by what it knew when the layer began, before it competed: so in the official code, where the decoder
    computes the transformation of p_s outside its layers.
    """

    def __init__(
        self, compete: Compete, self_attention: nn.Module, cross_attention: nn.Module, feed_forward: nn.Module,
        channels: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.compete = compete
        self.self_attention, self.cross_attention = self_attention, cross_attention
        self.feed_forward = feed_forward
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        aim = self.cross_attention.aim(x, reference)  # type: ignore[operator]
        x = self.norm1(x + self.dropout(self.compete(self.self_attention, x, position)))
        x = self.norm2(x + self.dropout(self.cross_attention(x, position, aim, memory)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class Decoder(nn.Module):
    """Queries and memory to the predictions of every layer, L of [B,K,N,.].

    ``heads``: one for each layer, or one that all share. ``norm`` is applied to what a head reads, not to what the
    next layer gets. ``recompute`` trades a second forward of each layer for its activations (gradient checkpointing).
    """

    def __init__(
        self, layers: Sequence[nn.Module], heads: Sequence[nn.Module], norm: nn.Module, update: Update, recompute: bool
    ) -> None:
        super().__init__()
        self.layers, self.heads, self.norm = nn.ModuleList(layers), nn.ModuleList(heads), norm
        self.update, self.recompute = update, recompute

    def forward(self, queries: Queries, memory: Memory) -> list[Predictions]:
        x, reference, said = queries.content, queries.reference, []
        for layer, head in zip(self.layers, self.heads):
            x = self.run(layer, x, queries.position, reference, memory)
            said.append(head(self.norm(x), reference))
            reference = self.update(head, x, reference)
        return said

    def run(self, layer: nn.Module, *inputs: Tensor | Memory) -> Tensor:
        return checkpoint(layer, *inputs, use_reentrant=False) if self.recompute and self.training else layer(*inputs)
