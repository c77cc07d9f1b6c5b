"""What attention of K groups costs, against the forms that repositories ship. Projections are included.

    python benchmarks/attention.py [--lwdetr ../LW-DETR] [--device cuda]
    python benchmarks/attention.py --kinds dense --batch 1 --queries 900 --height 120 --width 50 [--dropout 0.1]

Self-attention within groups: against one attention over all K*N queries that a mask splits into groups, and against
LW-DETR's, which cuts the groups into the batch and spells the attention matrix out. Conditional cross-attention:
against the usual form, which concatenates content and place and spells the matrix out. Dense cross-attention, as PETR
has it (above: its 6,000 tokens of six views): against weights, what dropout leaves of them, and sum, one after the
other. Ratios are against the first of each kind; ``error`` is the largest difference from its result, of which dropout
makes no sense; ``kept`` is what backward needs beyond the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import measure
import peers
import torch
import tyro
from measure import Watch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.attention.conditional_cross_attention import (
    ConditionalCrossAttention,
    PointAim,
)
from groupdetr.modeling.attention.dense_cross_attention import DenseCrossAttention
from groupdetr.modeling.attention.self_attention import SelfAttention
from groupdetr.structures.memory import Memory


@dataclass
class Options:
    kinds: tuple[Literal["self", "conditional", "dense"], ...] = ("self", "conditional", "dense")
    lwdetr: Path | None = None
    groups: int = 11
    queries: int = 300
    height: int = 25  # of the feature map that queries look at
    width: int = 42
    batch: int = 2
    channels: int = 256
    heads: int = 8
    dropout: float = 0.0  # of the weights of dense attention
    rounds: int = 5
    device: str = "cpu"
    threads: int = 1
    out: Path | None = None  # JSON


class Case:
    """Queries, an image, and our two layers, whose weights all variants have."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(0)
        self.options, c = options, options.channels
        self.self_attention = SelfAttention(c, options.heads, 0.0).to(options.device)
        self.cross_attention = ConditionalCrossAttention(c, options.heads, 0.0, PointAim()).to(
            options.device
        )
        self.dense_attention = DenseCrossAttention(c, options.heads, options.dropout).to(
            options.device
        )
        shape = (options.batch, options.groups, options.queries, c)
        self.content, self.position = (
            torch.randn(shape, device=options.device).requires_grad_() for _ in range(2)
        )
        tokens, place = torch.randn(
            2, options.batch, options.height * options.width, c, device=options.device
        )
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=options.device)
        map_shape = (options.height, options.width)
        self.memory = Memory(tokens.requires_grad_(), place, padding, (map_shape,), padded=False)
        self.results: dict[str, Tensor] = {}

    @property
    def inputs(self) -> list[Tensor]:
        layers = (self.self_attention, self.cross_attention, self.dense_attention)
        return [
            self.content,
            self.position,
            self.memory.tokens,
            *(p for layer in layers for p in layer.parameters()),
        ]

    # self-attention

    def ours(self) -> Tensor:
        return self.self_attention(self.content, self.position)

    def by_mask(self) -> Tensor:
        """All queries attend to all, and a mask forbids what is not of one group."""
        group = torch.arange(self.options.groups, device=self.content.device).repeat_interleave(
            self.options.queries
        )
        content, position = (x.flatten(1, 2) for x in (self.content, self.position))
        attention = filled(
            nn.MultiheadAttention(self.options.channels, self.options.heads, batch_first=True), self
        )
        placed, mask = content + position, group[:, None] != group
        return attention(placed, placed, content, attn_mask=mask, need_weights=False)[0].view(
            self.content.shape
        )

    def lwdetr(self) -> Tensor:
        assert self.options.lwdetr is not None
        theirs = peers.lwdetr(self.options.lwdetr, "models.attention").MultiheadAttention
        attention = filled(
            theirs(self.options.channels, self.options.heads, batch_first=True), self
        )
        content, position = (x.flatten(1, 2) for x in (self.content, self.position))
        placed, size = content + position, self.options.queries
        parts = [torch.cat(x.split(size, dim=1), dim=0) for x in (placed, placed, content)]
        mixed = attention(*parts)[0]
        return torch.cat(mixed.split(len(content), dim=0), dim=1).view(self.content.shape)

    # cross-attention

    def ours_across(self) -> Tensor:
        return self.cross_attention(self.content, self.position, self.position, self.memory)

    def spelled_out(self) -> Tensor:
        """Scores of the concatenated halves, softmax, and the sum of values, as three operations."""
        layer, heads = self.cross_attention, self.options.heads
        place = layer.key_place(self.memory.position)
        queries = (layer.query_content(self.content), layer.query_place(self.position))
        query = torch.cat([split(x.flatten(1, 2), heads) for x in queries], dim=-1)
        key = torch.cat(
            [split(x, heads) for x in (layer.key_content(self.memory.tokens), place)], dim=-1
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        seen = scores.softmax(-1) @ split(layer.value(self.memory.tokens), heads)
        return layer.output(seen.transpose(1, 2).flatten(2)).view(self.content.shape)

    def ours_dense(self) -> Tensor:
        return self.dense_attention(self.content, self.position, self.position, self.memory)

    def spelled_out_dense(self) -> Tensor:
        """Weights of all queries and tokens, what dropout leaves of them, and the sum of values."""
        layer, heads = self.dense_attention, self.options.heads
        query = split(layer.query((self.content + self.position).flatten(1, 2)), heads)
        key = split(layer.key(self.memory.tokens + self.memory.position), heads)
        weights = ((query * query.shape[-1] ** -0.5) @ key.mT).softmax(-1)
        weights = F.dropout(weights, self.options.dropout) if self.options.dropout else weights
        seen = weights @ split(layer.value(self.memory.tokens), heads)
        return layer.output(seen.transpose(1, 2).flatten(2)).view(self.content.shape)


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def filled(attention: Any, case: Case) -> Any:
    """Theirs, with our weights: the same parameters, so gradients have somewhere to go."""
    ours = case.self_attention
    layers = (ours.query, ours.key, ours.value)
    attention.to(case.options.device).train()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        attention.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        attention.out_proj.load_state_dict(ours.output.state_dict())
    return attention


def timed(case: Case, name: str, attend: Callable[[], Tensor]) -> measure.Times:
    watch = Watch(case.options.device)
    result = attend()
    watch.lap("forward")
    result.backward(case.content.detach())
    watch.lap("backward")
    case.results[name] = result.detach()
    return watch.times


def table(case: Case, variants: dict[str, Callable[[], Tensor]]) -> dict[str, dict[str, Any]]:
    runs = {
        name: lambda name=name, run=run: timed(case, name, run) for name, run in variants.items()
    }
    times = measure.interleaved(runs, case.options.rounds)
    first = next(iter(variants))
    return {
        name: {
            "forward and backward, ms": times.ms(name),
            "speed-up": times.speed_up(name, over=first),
            "forward": times.speed_up(name, first, "forward"),
            "kept, MiB": measure.kept_for_backward(run, case.inputs),
            "error": (case.results[name] - case.results[first]).abs().max().item(),
        }
        for name, run in variants.items()
    }


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    case = Case(options)
    within = {"self-attention, by a mask": case.by_mask, "self-attention, ours": case.ours}
    if options.lwdetr:
        within = {"self-attention, LW-DETR": case.lwdetr, **within}
    kinds = {
        "self": within,
        "conditional": {
            "cross-attention, spelled out": case.spelled_out,
            "cross-attention, ours": case.ours_across,
        },
        "dense": {"dense, spelled out": case.spelled_out_dense, "dense, ours": case.ours_dense},
    }
    rows = {name: row for kind in options.kinds for name, row in table(case, kinds[kind]).items()}
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
