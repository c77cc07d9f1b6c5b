"""Learned queries: parameters of K groups of N queries, the same for every image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groupdetr.modeling.mlp import MLP
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes
from groupdetr.modeling.queries.query_source import QuerySource
from groupdetr.ops.position import sine_embedding
from groupdetr.structures.memory import Memory
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target

QUERY_TABLE = ParameterAxes((Axis.GROUP, Axis.QUERY))  # [K,N,...]


class LearnedQueries(QuerySource):
    """Base of query sources with parameters of their own.

    Groups are initialised independently: equal groups would get equal gradients and stay equal.
    ``inference_group`` is the group that runs at inference; None for all groups.
    """

    def __init__(self, inference_group: int | None) -> None:
        super().__init__()
        self.inference_group = inference_group


class LearnedPoints(LearnedQueries):
    """Conditional DETR's queries: learned position embeddings.

    An MLP computes the reference point from the position embedding. The content starts at zero.
    """

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))
        self.ref_point_head = MLP(channels, channels, 2, num_layers=2)

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"embedding": QUERY_TABLE}

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        position = self.embedding[self.active_groups]
        reference = self.ref_point_head(position).sigmoid()
        content = torch.zeros_like(position).expand(memory.tokens.shape[0], *position.shape)
        return Queries(content, reference.unsqueeze(0), position.unsqueeze(0))


class LearnedAnchors(LearnedQueries):
    """DAB-DETR's queries: learned anchor boxes.

    The decoder computes the position embedding from the box. The content starts at zero, or at one
    of P learned patterns (Anchor DETR, Wang et al. 2022), which all groups share. With patterns,
    every anchor is used P times, once with each of them. N is then P times the number of anchors:
    all anchors with the first pattern, then all with the second, and so on.
    """

    patterns: Tensor

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

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"anchors": QUERY_TABLE}

    @torch.no_grad()
    def init_uniform_anchors(self, size: float) -> None:
        """Initialise anchors with uniformly distributed centres, and the same width and height.

        By default, anchors start large and near the middle of the image. This is not in the paper.
        It is for trainings of minutes.
        """
        self.anchors[..., :2].uniform_(0.02, 0.98).logit_()
        self.anchors[..., 2:] = math.log(size / (1 - size))  # the inverse sigmoid of size

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        anchors = self.anchors[self.active_groups]  # [K,A,4]
        num_groups, num_anchors, _ = anchors.shape
        content = self.patterns.repeat_interleave(num_anchors, dim=0)  # [P*A,C]
        content = content.expand(memory.tokens.shape[0], num_groups, -1, -1)
        reference = anchors.sigmoid().repeat(1, len(self.patterns), 1)  # [K,P*A,4]
        return Queries(content, reference.unsqueeze(0))


class LearnedAnchorsAndContents(LearnedQueries):
    """DAB-Deformable-DETR's queries: learned anchor boxes and learned contents."""

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.anchors = nn.Parameter(torch.randn(num_groups, num_queries, 4))  # before the sigmoid
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"anchors": QUERY_TABLE, "embedding": QUERY_TABLE}

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        reference = self.anchors[self.active_groups].sigmoid()
        content = self.embedding[self.active_groups]
        return Queries(content.expand(memory.tokens.shape[0], -1, -1, -1), reference.unsqueeze(0))


class LearnedContents(LearnedQueries):
    """Mask2Former's queries: learned contents and learned position embeddings.

    They have no reference until they have predicted a mask.
    """

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))
        self.position = nn.Parameter(torch.randn(num_groups, num_queries, channels))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"embedding": QUERY_TABLE, "position": QUERY_TABLE}

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        content = self.embedding[self.active_groups]
        position = self.position[self.active_groups].unsqueeze(0)
        no_reference = position[..., :0]  # [1,K,N,0]
        return Queries(content.expand(memory.tokens.shape[0], -1, -1, -1), no_reference, position)


class LearnedPoints3D(LearnedQueries):
    """PETR's queries: learned 3D points, normalised to [0,1] of the detection space.

    An MLP computes the position embedding from the point. The content starts at zero. As in the
    published code, nothing keeps the points in [0,1].
    """

    def __init__(
        self, num_groups: int, num_queries: int, channels: int, inference_group: int | None
    ) -> None:
        super().__init__(inference_group)
        self.position_embedding = MLP(3 * channels // 2, channels, channels, num_layers=2)
        self.points = nn.Parameter(torch.rand(num_groups, num_queries, 3))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"points": QUERY_TABLE}

    @torch.no_grad()
    def init_around_origin(self, radius: float) -> None:
        """Initialise points uniformly in a disc around the vehicle, at half of the height.

        ``radius`` is normalised to the detection space. This is not in the paper. It is for few
        queries and trainings of minutes.
        """
        angle, distance = torch.rand(2, *self.points.shape[:-1])
        angle = 2 * math.pi * angle
        # The square root makes the density uniform over the area of the disc.
        distance = radius * distance.sqrt()
        offsets = [distance * angle.cos(), distance * angle.sin(), torch.zeros_like(distance)]
        self.points.copy_(0.5 + torch.stack(offsets, dim=-1))

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        points = self.points[self.active_groups]
        sine = sine_embedding(points, memory.tokens.shape[-1] // 2)
        position = self.position_embedding(sine.to(points.dtype))
        content = torch.zeros_like(position).expand(memory.tokens.shape[0], *position.shape)
        return Queries(content, points.unsqueeze(0), position.unsqueeze(0))
