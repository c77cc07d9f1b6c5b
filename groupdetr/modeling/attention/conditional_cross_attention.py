"""Conditional cross-attention (Conditional DETR, Meng et al. 2021, Sec. 3.3).

Content and position are compared separately. In every head a query is the concatenation
[content ; sine embedding of its reference point] and a key is [content ; position embedding].
Queries and keys are therefore twice as wide as the values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupdetr.groups import flatten_groups
from groupdetr.modeling.attention.cross_attention import CrossAttention, KeysValues
from groupdetr.modeling.attention.multihead import dot_product_attention, split_heads
from groupdetr.modeling.linear import Linear
from groupdetr.modeling.mlp import MLP
from groupdetr.ops.position import sine_embedding
from groupdetr.structures.memory import Memory


class ReferencePointEmbedding(nn.Module):
    """Sine embedding of the reference point, or of the centre of the reference box.

    ``content`` [B,K,N,C] and ``reference`` [B|1,K,N,R] -> [B|1,K,N,C].
    """

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        channels = content.shape[-1]
        return sine_embedding(reference[..., :2], channels // 2).to(content.dtype)


class ContentScaledPointEmbedding(ReferencePointEmbedding):
    """Sine embedding multiplied by T, an MLP of the content (Conditional DETR, Eq. 5).

    Decoder layers share the MLP ``scale``.
    """

    def __init__(self, scale: MLP) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        return super().forward(content, reference) * self.scale(content)


class BoxModulatedPointEmbedding(nn.Module):
    """Width- and height-modulated sine embedding (DAB-DETR, Liu et al. 2022, Eq. 6).

    The x half of the embedding is multiplied by w_ref / w and the y half by h_ref / h, where
    (w_ref, h_ref) = sigmoid(MLP(content)) and (w, h) is the size of the reference box. The smaller
    the box, the sharper the attention around its centre. Decoder layers share the MLP ``size``.
    """

    def __init__(self, point: ReferencePointEmbedding, size: MLP) -> None:
        super().__init__()
        self.point = point
        self.size = size

    def forward(self, content: Tensor, reference: Tensor) -> Tensor:
        # The embedding is [y half ; x half], the order of `sine_embedding`.
        halves = self.point(content, reference).unflatten(-1, (2, -1))
        reference_size = self.size(content).to(reference.dtype).sigmoid()
        ratio = reference_size / reference[..., 2:]  # width, height
        return (halves * ratio.flip(-1).unsqueeze(-1)).flatten(-2)


class ConditionalCrossAttention(CrossAttention):
    """Cross-attention of Conditional DETR and DAB-DETR, from the second decoder layer on.

    ``query_sine_embed`` computes the positional half of the queries from content and reference.
    """

    def __init__(
        self, channels: int, num_heads: int, dropout: float, query_sine_embed: nn.Module
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_sine_embed = query_sine_embed
        self.query_content_proj = Linear(channels, channels)
        self.query_sine_proj = Linear(channels, channels)
        self.key_content_proj = Linear(channels, channels)
        self.key_pos_proj = Linear(channels, channels)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        nn.init.zeros_(self.output_proj.bias)

    def embed_reference(self, content: Tensor, reference: Tensor) -> Tensor:
        """Return the sine embedding of the reference, [B,K,N,C]."""
        return self.query_sine_embed(content, reference)

    def precompute_keys_values(self, memory: Memory) -> KeysValues:
        """Return keys [B,heads,S,2*C/heads] and values [B,heads,S,C/heads]."""
        key_position = self.key_pos_proj(memory.position)
        key_content = self.project_key_content(memory.tokens, key_position)
        key = self.concat_per_head(key_content, key_position)
        value = split_heads(self.value_proj(memory.tokens), self.num_heads)
        return key, value

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Memory,
        keys_values: KeysValues | None = None,
    ) -> Tensor:
        key, value = keys_values or self.precompute_keys_values(memory)
        query_content = self.project_query_content(content, position)
        query_sine = self.query_sine_proj(reference)
        query = self.concat_per_head(flatten_groups(query_content), flatten_groups(query_sine))
        dropout = self.dropout if self.training else 0.0
        attended = dot_product_attention(query, key, value, memory.key_padding_mask, dropout)
        return self.output_proj(attended).reshape(content.shape)

    @torch.no_grad()
    def init_around_reference(self, gain: float) -> None:
        """Initialise so that every query attends around its reference point from the first step.

        The projections of query and key positions become equal, so attention starts as the
        similarity of their sine embeddings. A larger ``gain`` makes it sharper. T starts at one.
        This is not in the paper. It is for trainings of minutes.
        """
        self.query_sine_proj.weight.copy_(self.key_pos_proj.weight).mul_(gain)
        self.key_pos_proj.weight.mul_(gain)
        for module in self.query_sine_embed.modules():
            if isinstance(module, ContentScaledPointEmbedding):
                module.scale.init_constant(1.0)

    def project_query_content(self, content: Tensor, position: Tensor) -> Tensor:
        """Return the content half of the queries, [B,K,N,C]. Only the first layer uses position."""
        return self.query_content_proj(content)

    def project_key_content(self, tokens: Tensor, key_position: Tensor) -> Tensor:
        """Return the content half of the keys, [B,S,C]."""
        return self.key_content_proj(tokens)

    def concat_per_head(self, content: Tensor, position: Tensor) -> Tensor:
        """Concatenate two halves [B,N,C] inside every head: [B,heads,N,2*C/heads].

        A tensor of positions may have one image instead of B.
        """
        halves = (content, position.expand_as(content))
        return torch.cat([split_heads(half, self.num_heads) for half in halves], dim=-1)


class FirstConditionalCrossAttention(ConditionalCrossAttention):
    """Cross-attention of the first decoder layer.

    The content of the queries is still zero, so position embeddings are added to the content
    halves of queries and keys, as in the official code.
    """

    def __init__(
        self, channels: int, num_heads: int, dropout: float, query_sine_embed: nn.Module
    ) -> None:
        super().__init__(channels, num_heads, dropout, query_sine_embed)
        self.query_pos_proj = Linear(channels, channels)

    def project_query_content(self, content: Tensor, position: Tensor) -> Tensor:
        return self.query_content_proj(content) + self.query_pos_proj(position)

    def project_key_content(self, tokens: Tensor, key_position: Tensor) -> Tensor:
        return self.key_content_proj(tokens) + key_position
