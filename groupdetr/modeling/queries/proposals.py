"""Proposals (two-stage detectors): every group picks its own queries from the encoder's tokens, with a head of its own.

A shared head would propose the same to all groups. So a group has its own projection, class head and box head (as in
Baidu's Group DINO and in LW-DETR); their parameters have the group as first axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.encoders.deformable_encoder import token_centres
from groupdetr.modeling.heads import PRIOR
from groupdetr.modeling.linear import linear
from groupdetr.modeling.queries.learned_queries import LearnedQueries
from groupdetr.structures.memory import Memory
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target

SIZE = 0.05  # of a proposal on the finest level, doubled on each coarser one (Deformable DETR)
MARGIN = 0.01  # proposals nearer to 0 or 1 than this are not made


class GroupLinear(nn.Module):
    """K linear layers side by side: [B,1|K,M,in] -> [B,K,M,out]."""

    def __init__(self, num_groups: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layers = [nn.Linear(in_channels, out_channels) for _ in range(num_groups)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor, groups: slice) -> Tensor:
        weight, bias = self.weight[groups], self.bias[groups]
        if len(weight) == 1:
            return linear(x, weight[0], bias[0])
        return x @ weight.mT + bias.unsqueeze(1)


class GroupHeads(nn.Module):
    """What every group reads off tokens: [B,1|K,M,C] to the content, class logits and box offsets of a proposal."""

    def __init__(self, num_groups: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.project = GroupLinear(num_groups, channels, channels)
        self.norm_weight = nn.Parameter(torch.ones(num_groups, channels))
        self.norm_bias = nn.Parameter(torch.zeros(num_groups, channels))
        self.classify = GroupLinear(num_groups, channels, num_classes)
        widths = (channels, channels, channels, 4)
        self.regress = nn.ModuleList(GroupLinear(num_groups, a, b) for a, b in pairwise(widths))
        nn.init.constant_(self.classify.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.zeros_(self.regress[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.regress[-1].bias)  # type: ignore[arg-type]

    def content(self, tokens: Tensor, groups: slice) -> Tensor:
        """[B,K,M,C]"""
        x = F.layer_norm(self.project(tokens, groups), tokens.shape[-1:])
        return x * self.norm_weight[groups].unsqueeze(1) + self.norm_bias[groups].unsqueeze(1)

    def offsets(self, content: Tensor, groups: slice) -> Tensor:
        """[B,K,M,4] before the sigmoid."""
        *hidden, last = self.regress
        for layer in hidden:
            content = F.relu(layer(content, groups))
        return last(content, groups)


class Proposals(LearnedQueries):
    """DAB-Deformable-DETR's second stage (as detrex has it): a group's N tokens of highest score, by any class, are its
    queries; their boxes are where they look, and they know what the token says.

    Tokens that are scored teach nothing unless they are chosen, so scores are taken without a graph, of one group after
    another as there are many tokens, and the chosen ones read again. An image of fewer tokens has fewer queries.
    """

    def __init__(
        self,
        num_groups: int,
        num_queries: int,
        channels: int,
        num_classes: int,
        inference_group: int | None,
    ) -> None:
        super().__init__(inference_group)
        self.num_groups, self.num_queries = num_groups, num_queries
        self.heads = GroupHeads(num_groups, channels, num_classes)

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        del targets
        groups = self.running
        tokens, anchors = proposable(memory)
        scores = [self.score(tokens, slice(k, k + 1)) for k in range(self.num_groups)[groups]]
        chosen = self.choose(torch.cat(scores, dim=1), anchors)
        content = self.heads.content(rows(tokens, chosen), groups)
        boxes = (self.heads.offsets(content, groups) + rows(anchors, chosen)).sigmoid()
        said = Predictions(self.heads.classify(content, groups), boxes)
        return Queries(self.known(content, groups), boxes.detach(), proposals=said)

    @torch.no_grad()
    def score(self, tokens: Tensor, groups: slice) -> Tensor:
        """Of all tokens [B,S,C], by their likeliest class: [B,K,S]."""
        return self.heads.classify(self.heads.content(tokens.unsqueeze(1), groups), groups).amax(-1)

    def choose(self, scores: Tensor, anchors: Tensor) -> Tensor:
        """The tokens of highest score [B,K,S]: their indices [B,K,N,1]. Tokens without a box are not left out."""
        del anchors
        return scores.topk(min(self.num_queries, scores.shape[-1]), dim=-1).indices.unsqueeze(-1)

    def known(self, content: Tensor, groups: slice) -> Tensor:
        """What queries know at first, [B,K,N,C], from what their tokens say."""
        del groups
        return content.detach()


class MixedProposals(Proposals):
    """DINO's mixed query selection: where to look comes from the token, what is known is learned."""

    def __init__(
        self,
        num_groups: int,
        num_queries: int,
        channels: int,
        num_classes: int,
        inference_group: int | None,
    ) -> None:
        super().__init__(num_groups, num_queries, channels, num_classes, inference_group)
        self.embedding = nn.Parameter(torch.randn(num_groups, num_queries, channels))

    def known(self, content: Tensor, groups: slice) -> Tensor:
        return self.embedding[groups, : content.shape[2]].expand(len(content), -1, -1, -1)


def proposable(memory: Memory) -> tuple[Tensor, Tensor]:
    """Tokens [B,S,C] and the box of each before the sigmoid [B,S,4]: at its centre, the larger the coarser its level.

    In the padding, and where a box would come too near to 0 or 1, tokens are zero and boxes infinite.
    """
    sizes = [
        SIZE * 2.0**level
        for level, shape in enumerate(memory.shapes)
        for _ in range(math.prod(shape))
    ]
    centres = token_centres(memory)
    boxes = torch.cat([centres, centres.new_tensor(sizes)[:, None].expand_as(centres)], dim=-1)
    outside = memory.padding | ~((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1)
    anchors = boxes.logit().masked_fill(outside.unsqueeze(-1), float("inf"))
    return memory.tokens.masked_fill(outside.unsqueeze(-1), 0.0), anchors


def rows(x: Tensor, chosen: Tensor) -> Tensor:
    """Rows [B,S,C] by index [B,K,N,1]: [B,K,N,C]."""
    flat = chosen.flatten(1, 2).expand(-1, -1, x.shape[-1])
    return x.gather(1, flat).unflatten(1, chosen.shape[1:3])
