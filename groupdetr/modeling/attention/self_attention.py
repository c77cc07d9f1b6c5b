"""Self-attention of tokens (DETR) and of object queries (Conditional DETR).

Every axis before the last two is a batch axis, so queries [B,K,N,C] attend only within their group.
"""

from __future__ import annotations

from torch import Tensor, nn

from groupdetr.modeling.attention.multihead import dot_product_attention, split_heads
from groupdetr.modeling.linear import Linear


def attention_projections(channels: int) -> list[Linear]:
    """Return the projections of query, key, value and output, initialised as in torch.

    `nn.MultiheadAttention` stacks query, key and value into one matrix. Xavier's bound of the
    stacked matrix is smaller by the square root of two, which is the ``gain`` here.
    """
    *inputs, output = (Linear(channels, channels) for _ in range(4))
    for projection in inputs:
        nn.init.xavier_uniform_(projection.weight, gain=2**-0.5)
    nn.init.xavier_uniform_(output.weight)
    for projection in (*inputs, output):
        nn.init.zeros_(projection.bias)
    return [*inputs, output]


class SelfAttention(nn.Module):
    """DETR's self-attention: query = key = content + position, value = content.

    ``content`` and ``position`` [...,N,C] -> [...,N,C]. ``blocked``, a bool that broadcasts to
    [...,heads,N,N], is True where a token (row) does not attend to another (column).
    """

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_proj, self.key_proj, self.value_proj, self.output_proj = attention_projections(
            channels
        )

    def forward(self, content: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        with_position = content + position
        query = self.query_proj(with_position)
        key = self.key_proj(with_position)
        value = self.value_proj(content)
        query, key, value = (
            split_heads(x.flatten(0, -3), self.num_heads) for x in (query, key, value)
        )
        attended = dot_product_attention(
            query, key, value, blocked, self.dropout if self.training else 0.0
        )
        return self.output_proj(attended).reshape(content.shape)


class ConditionalSelfAttention(nn.Module):
    """Conditional DETR's self-attention: content and position are projected separately and added.

    ``content`` and ``position`` [...,N,C] -> [...,N,C]. ``blocked`` [N,N] bool is True where a
    query (row) does not attend to another (column).
    """

    def __init__(self, channels: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content_proj = Linear(channels, channels)
        self.query_pos_proj = Linear(channels, channels)
        self.key_content_proj = Linear(channels, channels)
        self.key_pos_proj = Linear(channels, channels)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        nn.init.zeros_(self.output_proj.bias)

    def forward(self, content: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        query = self.query_content_proj(content) + self.query_pos_proj(position)
        key = self.key_content_proj(content) + self.key_pos_proj(position)
        value = self.value_proj(content)
        query, key, value = (
            split_heads(x.flatten(0, -3), self.num_heads) for x in (query, key, value)
        )
        attended = dot_product_attention(
            query, key, value, blocked, self.dropout if self.training else 0.0
        )
        return self.output_proj(attended).reshape(content.shape)
