"""Dense cross-attention equals torch's, with positions in queries and keys and none in values."""

from __future__ import annotations

import torch
from torch import nn

from groupdetr.modeling.attention.dense_cross_attention import DenseCrossAttention
from groupdetr.structures.memory import Memory

CHANNELS, HEADS = 32, 4


def random_memory(padded: bool) -> Memory:
    padding = torch.zeros(2, 15, dtype=torch.bool)
    padding[1, 9:] = padded
    return Memory.from_tokens(
        tokens=torch.randn(2, 15, CHANNELS),
        position=torch.randn(2, 15, CHANNELS),
        padding=padding,
        shapes=((3, 5),),
        padded=padded,
    )


def torch_attention(ours: DenseCrossAttention) -> nn.MultiheadAttention:
    """torch's layer with the weights of ours."""
    theirs = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
    inputs = (ours.query_proj, ours.key_proj, ours.value_proj)
    theirs.in_proj_weight.data = torch.cat([projection.weight for projection in inputs])
    theirs.in_proj_bias.data = torch.cat([projection.bias for projection in inputs])
    theirs.out_proj.load_state_dict(ours.output_proj.state_dict())
    return theirs


def test_dense_cross_attention_equals_torch() -> None:
    torch.manual_seed(0)
    ours = DenseCrossAttention(CHANNELS, HEADS, dropout=0.0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = torch_attention(ours)
    content, position = torch.randn(2, 3, 7, CHANNELS), torch.randn(1, 3, 7, CHANNELS)
    for memory in (random_memory(padded=True), random_memory(padded=False)):
        reference = ours.embed_reference(content, position)
        actual = ours(content, position, reference, memory)
        query, key = (content + position).flatten(1, 2), memory.tokens + memory.position
        expected, _ = theirs(query, key, memory.tokens, key_padding_mask=memory.padding)
        assert (actual.flatten(1, 2) - expected).abs().max() < 1e-5
        keys_values = ours.precompute_keys_values(memory)
        assert torch.equal(ours(content, position, position, memory, keys_values), actual)
