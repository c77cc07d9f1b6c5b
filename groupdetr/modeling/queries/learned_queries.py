"""Learned queries: a table of K groups of N rows, the same for every image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from groupdetr.groups import kept_at_inference
from groupdetr.modeling.mlp import MLP
from groupdetr.ops.position import sine_embedding
from groupdetr.structures.memory import Memory
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target


class LearnedQueries(nn.Module):
    """Groups start as independent draws: equal ones would be taught the same for ever.

    ``inference_group``: the group that inference keeps, None for all.
    """

    def __init__(self, inference_group: int | None) -> None:
        super().__init__()
        self.inference_group = inference_group

    @property
    def running(self) -> slice:
        """The groups that run: all in training, those that are kept otherwise."""
        return slice(None) if self.training else kept_at_inference(self.inference_group)


class LearnedPoints(LearnedQueries):
    """Conditional DETR's queries: a learned position embedding, from which the reference point is read.

    The content starts at zero.
    """

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))
        self.point = MLP(channels, channels, 2, num_layers=2)

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        del targets  # denoising needs them, these queries do not
        embedding = self.embedding[self.running]
        reference = self.point(embedding).sigmoid()
        content = torch.zeros_like(embedding).expand(len(memory.tokens), *embedding.shape)
        return Queries(content, reference.unsqueeze(0), embedding.unsqueeze(0))


class LearnedAnchors(LearnedQueries):
    """DAB-DETR's queries: a learned box, from which the position embedding is read; the content starts at zero.

    With P patterns (Anchor DETR, Wang et al. 2022), which groups share, every anchor asks P times, each time with
    another content to start from; then N is P times the number of anchors, pattern after pattern.
    """

    def __init__(
        self,
        num_groups: int,
        num_anchors: int,
        num_patterns: int,
        channels: int,
        inference_group: int | None,
    ) -> None:
        super().__init__(inference_group)
        self.anchors = nn.Parameter(torch.randn(num_groups, num_anchors, 4))  # before the sigmoid
        if num_patterns:
            self.patterns = nn.Parameter(torch.randn(num_patterns, channels))
        else:
            self.register_buffer("patterns", torch.zeros(1, channels), persistent=False)

    @torch.no_grad()
    def start_all_over(self, size: float) -> None:
        """Let anchors start anywhere in the image, alike in width and height, instead of large and near its middle.

        Not in the paper: a start for trainings of minutes.
        """
        self.anchors[..., :2].uniform_(0.02, 0.98).logit_()
        self.anchors[..., 2:] = math.log(size / (1 - size))

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        del targets
        anchors = self.anchors[self.running]
        content = self.patterns.repeat_interleave(anchors.shape[1], dim=0)  # [P*N,C]
        reference = anchors.sigmoid().repeat(1, len(self.patterns), 1)
        return Queries(
            content.expand(len(memory.tokens), len(anchors), -1, -1), reference.unsqueeze(0)
        )


class LearnedAnchorsAndContents(LearnedQueries):
    """DAB-Deformable-DETR's queries: a learned box, and learned what is known at first."""

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.anchors = nn.Parameter(torch.randn(num_groups, num_queries, 4))  # before the sigmoid
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        del targets
        anchors, embedding = self.anchors[self.running], self.embedding[self.running]
        return Queries(
            embedding.expand(len(memory.tokens), -1, -1, -1), anchors.sigmoid().unsqueeze(0)
        )


class LearnedContents(LearnedQueries):
    """Mask2Former's queries: learned what is known at first, and a learned position; they look nowhere in particular
    until they have told a mask."""

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))
        self.position = nn.Parameter(torch.randn(num_groups, num_queries, channels))

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        del targets
        embedding, position = self.embedding[self.running], self.position[self.running].unsqueeze(0)
        return Queries(
            embedding.expand(len(memory.tokens), -1, -1, -1), position[..., :0], position
        )


class LearnedSpacePoints(LearnedQueries):
    """PETR's queries: a learned point in space, in shares of it, from which the position embedding is read; the
    content starts at zero. As published, nothing keeps points in [0,1]."""

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.place = MLP(3 * channels // 2, channels, channels, num_layers=2)
        self.points = nn.Parameter(torch.rand(num_groups, num_queries, 3))

    @torch.no_grad()
    def start_around(self, radius: float) -> None:
        """Let points start within a radius of the vehicle, in shares of the space, halfway up.

        Not in the paper: a start for few queries and trainings of minutes.
        """
        angle, distance = torch.rand(2, *self.points.shape[:-1])
        angle, distance = (
            2 * math.pi * angle,
            radius * distance.sqrt(),
        )  # as many to an area everywhere
        self.points.copy_(
            0.5 + torch.stack([distance * angle.cos(), distance * angle.sin(), 0 * angle], dim=-1)
        )

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        del targets
        points = self.points[self.running]
        position = self.place(sine_embedding(points, memory.tokens.shape[-1] // 2).to(points.dtype))
        content = torch.zeros_like(position).expand(len(memory.tokens), *position.shape)
        return Queries(content, points.unsqueeze(0), position.unsqueeze(0))
