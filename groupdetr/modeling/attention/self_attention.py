"""Looking at one's like: self-attention of tokens (DETR) and of queries (Conditional DETR)."""

from __future__ import annotations

from torch import Tensor, nn

from groupdetr.modeling.attention.multihead import attend, split_heads
from groupdetr.modeling.linear import Linear


def projections(channels: int) -> list[Linear]:
    """Of query, key, value and output."""
    *inputs, output = (Linear(channels, channels) for _ in range(4))
    for projection in inputs:
        # the bound of Xavier's rule for the three stacked into one matrix, as in nn.MultiheadAttention
        nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
    nn.init.xavier_uniform_(output.weight)
    for projection in (*inputs, output):
        nn.init.zeros_(projection.bias)
    return [*inputs, output]


class SelfAttention(nn.Module):
    """DETR's: query = key = content + position, value = content. [...,N,C] -> [...,N,C]

    ``blocked``, bool that broadcasts to [...,heads,N,N]: True where one (row) does not see another (column).
    """

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value, self.output = projections(channels)

    def forward(self, content: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        placed = content + position
        heads = [self.query(placed), self.key(placed), self.value(content)]
        query, key, value = (split_heads(x.flatten(0, -3), self.num_heads) for x in heads)
        mixed = attend(query, key, value, blocked, self.dropout if self.training else 0.0)
        return self.output(mixed).reshape(content.shape)


class ConditionalSelfAttention(nn.Module):
    """Conditional DETR's: content and position each with a projection of its own, added. [...,N,C] -> [...,N,C]

    ``blocked`` [N,N] bool: True where a query (row) does not see another (column).
    """

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content, self.query_position = (
            Linear(channels, channels),
            Linear(channels, channels),
        )
        self.key_content, self.key_position = Linear(channels, channels), Linear(channels, channels)
        self.value, self.output = Linear(channels, channels), Linear(channels, channels)
        nn.init.zeros_(self.output.bias)

    def forward(self, content: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        heads = [
            self.query_content(content) + self.query_position(position),
            self.key_content(content) + self.key_position(position),
            self.value(content),
        ]
        query, key, value = (split_heads(x.flatten(0, -3), self.num_heads) for x in heads)
        mixed = attend(query, key, value, blocked, self.dropout if self.training else 0.0)
        return self.output(mixed).reshape(content.shape)
