"""Dense cross-attention is torch's, with positions in queries and keys and none in values."""

from __future__ import annotations

import torch
from torch import nn

from groupdetr.modeling.attention.dense_cross_attention import DenseCrossAttention
from groupdetr.structures.memory import Memory

CHANNELS, HEADS = 32, 4


def memory(padded: bool) -> Memory:
    padding = torch.zeros(2, 15, dtype=torch.bool)
    padding[1, 9:] = padded
    return Memory(
        torch.randn(2, 15, CHANNELS), torch.randn(2, 15, CHANNELS), padding, ((3, 5),), padded
    )


def like(ours: DenseCrossAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
    inputs = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([x.weight for x in inputs])
    theirs.in_proj_bias.data = torch.cat([x.bias for x in inputs])
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    return theirs


def test_it_is_torchs() -> None:
    torch.manual_seed(0)
    ours = DenseCrossAttention(CHANNELS, HEADS, dropout=0.0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    content, position = torch.randn(2, 3, 7, CHANNELS), torch.randn(1, 3, 7, CHANNELS)
    for seen in (memory(padded=True), memory(padded=False)):
        found = ours(content, position, ours.aim(content, position), seen)
        query, key = (content + position).flatten(1, 2), seen.tokens + seen.position
        expected, _ = like(ours)(query, key, seen.tokens, key_padding_mask=seen.padding)
        assert (found.flatten(1, 2) - expected).abs().max() < 1e-5
        assert torch.equal(ours(content, position, position, seen, ours.view(seen)), found)
