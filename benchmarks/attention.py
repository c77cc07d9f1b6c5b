"""What attention of K groups costs, against the forms of other repositories, projections included.

    python benchmarks/attention.py [--lwdetr ../LW-DETR] [--device cuda]
    python benchmarks/attention.py --kinds dense --batch 1 --queries 900 --height 120 --width 50

- Self-attention within groups, against one attention over all K*N queries with a mask that
  separates the groups, and against LW-DETR's, which moves the groups into the batch and computes
  the attention matrix.
- Conditional cross-attention, against the usual form, which concatenates content and position and
  computes the attention matrix.
- Dense cross-attention, as PETR has it (the second command: its 6,000 tokens of six views), against
  attention weights, their dropout (--dropout 0.1), and the weighted sum as separate operations.

"Spelled out" in the table means that the attention matrix is computed by separate operations,
instead of a fused kernel. Speed-ups are over the first variant of each kind. ``error`` is the
largest difference from its result; with dropout it has no meaning. ``kept`` is what the backward
pass needs besides the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import measure
import peers
import torch
from measure import Stopwatch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.attention.conditional_cross_attention import (
    ConditionalCrossAttention,
    ReferencePointEmbedding,
)
from groupdetr.modeling.attention.dense_cross_attention import DenseCrossAttention
from groupdetr.modeling.attention.multihead import split_heads
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.structures.memory import Memory

Attend = Callable[[], Tensor]  # returns the attended content [B,K,N,C]


@dataclass
class Options:
    kinds: tuple[Literal["self", "conditional", "dense"], ...] = ("self", "conditional", "dense")
    lwdetr: Path | None = None
    groups: int = 11
    queries: int = 300
    height: int = 25  # of the feature map that queries attend to
    width: int = 42
    batch: int = 2
    channels: int = 256
    heads: int = 8
    dropout: float = 0.0  # of the weights of dense attention
    rounds: int = 5
    device: str = "cpu"
    threads: int = 1
    quick: bool = False  # fewer groups and rounds
    out: Path | None = None  # JSON


QUICK = {"groups": 4, "rounds": 1}


class AttentionVariants:
    """Our attention layers, and other forms of them with the same weights and inputs."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(0)
        self.options = options
        device, channels = options.device, options.channels
        self.self_attention = SelfAttention(channels, options.heads, 0.0).to(device)
        self.cross_attention = ConditionalCrossAttention(
            channels, options.heads, 0.0, ReferencePointEmbedding()
        ).to(device)
        self.dense_attention = DenseCrossAttention(channels, options.heads, options.dropout).to(
            device
        )
        shape = (options.batch, options.groups, options.queries, channels)
        self.content = torch.randn(shape, device=device).requires_grad_()
        self.position = torch.randn(shape, device=device).requires_grad_()
        num_tokens = options.height * options.width
        tokens, position = torch.randn(2, options.batch, num_tokens, channels, device=device)
        self.memory = Memory.from_tokens(
            tokens=tokens.requires_grad_(),
            position=position,
            padding=torch.zeros(tokens.shape[:2], dtype=torch.bool, device=device),
            shapes=((options.height, options.width),),
            padded=False,
        )
        # The layers whose weights do not count as saved for the backward pass
        self.layers: list[nn.Module] = [
            self.self_attention,
            self.cross_attention,
            self.dense_attention,
        ]
        self.results: dict[str, Tensor] = {}  # name of a variant -> its last result

    @property
    def inputs(self) -> list[Tensor]:
        """Inputs and weights. They do not count as saved for the backward pass."""
        inputs = [self.content, self.position, self.memory.tokens]
        for layer in self.layers:
            inputs += layer.parameters()
        return inputs

    # Self-attention

    def self_ours(self) -> Tensor:
        return self.self_attention(self.content, self.position)

    def self_by_mask(self) -> Tensor:
        """All queries in one attention; the mask blocks pairs of different groups."""
        attention, blocked = self.masked_attention
        content = self.content.flatten(1, 2)
        query = content + self.position.flatten(1, 2)
        attended, _ = attention(query, query, content, attn_mask=blocked, need_weights=False)
        return attended.view(self.content.shape)

    # The layers of other forms are built in the round that warms up, and not in those that are
    # timed. So are ours.

    @cached_property
    def masked_attention(self) -> tuple[nn.MultiheadAttention, Tensor]:
        """A stock attention with our weights, and a mask [K*N,K*N] that separates the groups."""
        options = self.options
        group = torch.arange(options.groups, device=self.content.device)
        group_of_query = group.repeat_interleave(options.queries)  # [K*N]
        attention = nn.MultiheadAttention(options.channels, options.heads, batch_first=True)
        return self.copy_weights_to(attention), group_of_query[:, None] != group_of_query

    @cached_property
    def lwdetr_attention(self) -> nn.Module:
        """LW-DETR's attention with our weights."""
        options = self.options
        assert options.lwdetr is not None
        attention_class = peers.lwdetr(options.lwdetr, "models.attention").MultiheadAttention
        attention = attention_class(options.channels, options.heads, batch_first=True)
        return self.copy_weights_to(attention)

    def self_lwdetr(self) -> Tensor:
        """LW-DETR's: groups become images of the batch, [B,K*N,C] -> [K*B,N,C]."""
        content = self.content.flatten(1, 2)
        query = content + self.position.flatten(1, 2)
        inputs = []
        for x in (query, query, content):
            inputs.append(torch.cat(x.split(self.options.queries, dim=1), dim=0))
        attended = self.lwdetr_attention(*inputs)[0]
        by_group = attended.split(len(content), dim=0)
        return torch.cat(by_group, dim=1).view(self.content.shape)

    def copy_weights_to(self, attention: Any) -> Any:
        """Copy the weights of our self-attention into a module with stacked projections.

        The parameters themselves are not shared, so the backward pass computes their gradients.
        """
        ours = self.self_attention
        projections = (ours.query_proj, ours.key_proj, ours.value_proj)
        attention.to(self.options.device).train()
        with torch.no_grad():
            attention.in_proj_weight.copy_(torch.cat([proj.weight for proj in projections]))
            attention.in_proj_bias.copy_(torch.cat([proj.bias for proj in projections]))
            attention.out_proj.load_state_dict(ours.output_proj.state_dict())
        self.layers.append(attention)
        return attention

    # Cross-attention

    def conditional_ours(self) -> Tensor:
        return self.cross_attention(self.content, self.position, self.position, self.memory)

    def conditional_spelled_out(self) -> Tensor:
        """Scores of the concatenated halves, softmax, and the sum of values as three operations."""
        layer = self.cross_attention
        # Content and position are concatenated in every head: [B,heads,N,2*C/heads].
        query_content = self.split(layer.query_content_proj(self.content).flatten(1, 2))
        query_sine = self.split(layer.query_sine_proj(self.position).flatten(1, 2))
        query = torch.cat([query_content, query_sine], dim=-1)
        key_content = self.split(layer.key_content_proj(self.memory.tokens))
        key_position = self.split(layer.key_pos_proj(self.memory.position))
        key = torch.cat([key_content, key_position], dim=-1)
        value = self.split(layer.value_proj(self.memory.tokens))

        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        attended = scores.softmax(-1) @ value
        return layer.output_proj(self.merge_heads(attended)).view(self.content.shape)

    def dense_ours(self) -> Tensor:
        return self.dense_attention(self.content, self.position, self.position, self.memory)

    def dense_spelled_out(self) -> Tensor:
        """Attention weights of all queries and tokens, their dropout, and the sum of values."""
        layer = self.dense_attention
        query = self.split(layer.query_proj((self.content + self.position).flatten(1, 2)))
        key = self.split(layer.key_proj(self.memory.tokens + self.memory.position))
        value = self.split(layer.value_proj(self.memory.tokens))

        weights = ((query * query.shape[-1] ** -0.5) @ key.mT).softmax(-1)
        if self.options.dropout:
            weights = F.dropout(weights, self.options.dropout)
        attended = weights @ value
        return layer.output_proj(self.merge_heads(attended)).view(self.content.shape)

    def split(self, x: Tensor) -> Tensor:
        """[B,N,heads*C] -> [B,heads,N,C]."""
        return split_heads(x, self.options.heads)

    def merge_heads(self, x: Tensor) -> Tensor:
        """[B,heads,N,C] -> [B,N,heads*C]."""
        return x.transpose(1, 2).flatten(2)

    def run(self, name: str, attend: Attend) -> measure.Times:
        """Run a variant forward and backward, and return the times of both."""
        stopwatch = Stopwatch(self.options.device)
        result = attend()
        stopwatch.lap("forward")
        result.backward(self.content.detach())
        stopwatch.lap("backward")
        self.results[name] = result.detach()
        return stopwatch.times


def compare(layers: AttentionVariants, variants: dict[str, Attend]) -> dict[str, dict[str, Any]]:
    """Return a row of the table for each variant. They are compared with the first one."""
    runs = {name: partial(layers.run, name, attend) for name, attend in variants.items()}
    timings = measure.time_interleaved(runs, layers.options.rounds)
    first = next(iter(variants))
    rows = {}
    for name, attend in variants.items():
        rows[name] = {
            "forward and backward, ms": timings.ms(name),
            "speed-up": timings.speed_up(name, over=first),
            "forward": timings.speed_up(name, first, "forward"),
            "kept, MiB": measure.saved_for_backward(attend, layers.inputs),
            "error": (layers.results[name] - layers.results[first]).abs().max().item(),
        }
    return rows


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    layers = AttentionVariants(options)
    self_variants: dict[str, Attend] = {}
    if options.lwdetr:
        self_variants["self-attention, LW-DETR"] = layers.self_lwdetr
    self_variants["self-attention, by a mask"] = layers.self_by_mask
    self_variants["self-attention, ours"] = layers.self_ours
    variants_by_kind: dict[str, dict[str, Attend]] = {
        "self": self_variants,
        "conditional": {
            "cross-attention, spelled out": layers.conditional_spelled_out,
            "cross-attention, ours": layers.conditional_ours,
        },
        "dense": {
            "dense, spelled out": layers.dense_spelled_out,
            "dense, ours": layers.dense_ours,
        },
    }
    rows: dict[str, dict[str, Any]] = {}
    for kind in options.kinds:
        rows |= compare(layers, variants_by_kind[kind])
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
