"""Learned queries: a table of K groups of N rows, the same for every image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from groupdetr.groups import kept_at_inference
from groupdetr.mlp import MLP
from groupdetr.structures import Memory, Queries, Target


class LearnedPoints(nn.Module):
    """Conditional DETR's queries: a learned position embedding, from which the reference point is read.

    The content starts at zero. Groups start as independent draws: equal ones would be taught the same for ever.
    ``inference_group``: the group that inference keeps, None for all.
    """

    def __init__(self, num_groups: int, num_queries: int, channels: int, inference_group: int | None) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))
        self.point = MLP(channels, channels, 2, num_layers=2)
        self.inference_group = inference_group

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        del targets  # denoising needs them, these queries do not
        embedding = self.embedding if self.training else kept_at_inference(self.embedding, self.inference_group)
        reference = self.point(embedding).sigmoid()
        content = torch.zeros_like(embedding).expand(len(memory.tokens), *embedding.shape)
        return Queries(content, reference.unsqueeze(0), embedding.unsqueeze(0))
