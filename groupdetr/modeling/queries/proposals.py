"""Two-stage query selection: every group selects its own proposals from the encoder's tokens.

A shared head would select the same tokens in all groups. So every group has a projection, a class
head and a box head of its own, as in Baidu's Group DINO and in LW-DETR. The first axis of their
parameters is the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.encoders.deformable_encoder import token_centres
from groupdetr.modeling.heads import init_prior_bias
from groupdetr.modeling.linear import init_linear_weight, linear
from groupdetr.modeling.module_list import ModuleList
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes
from groupdetr.modeling.queries.learned_queries import QUERY_TABLE, LearnedQueries
from groupdetr.modeling.queries.query_source import GroupIndex
from groupdetr.ops.boxes import move_boxes
from groupdetr.structures.memory import Memory
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target

# Width and height of the anchor of a token on the finest level, relative to the image. On each
# coarser level they are twice as large (Deformable DETR).
SIZE = 0.05
MARGIN = 0.01  # anchors with a coordinate or a size closer than this to 0 or 1 are not valid


class GroupLinear(nn.Module):
    """K linear layers, one for each group: [B,1|K,M,in] -> [B,K,M,out]."""

    def __init__(self, num_groups: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layers = [nn.Linear(in_channels, out_channels) for _ in range(num_groups)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"weight": ParameterAxes((Axis.GROUP,)), "bias": ParameterAxes((Axis.GROUP,))}

    def forward(self, x: Tensor, groups: GroupIndex) -> Tensor:
        """Apply the layers of ``groups``."""
        weight, bias = self.weight[groups], self.bias[groups]
        if is_computed_alone(len(weight), x):
            return linear(x, weight[0], bias[0])
        return x @ weight.mT + bias.unsqueeze(1)


def is_computed_alone(num_groups: int, x: Tensor) -> bool:
    """Return whether the usual operation, which is faster, computes a layer of one group.

    Under autocast it rounds less often than the operations for several groups do. A group must have
    the same result alone as with others.
    """
    return num_groups == 1 and not torch.is_autocast_enabled(x.device.type)


class GroupHeads(nn.Module):
    """The heads of every group: they compute content, class logits and box offsets of proposals."""

    def __init__(self, num_groups: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.project = GroupLinear(num_groups, channels, channels)
        self.norm_weight = nn.Parameter(torch.ones(num_groups, channels))
        self.norm_bias = nn.Parameter(torch.zeros(num_groups, channels))
        self.classify = GroupLinear(num_groups, channels, num_classes)
        widths = (channels, channels, channels, 4)
        self.regress: ModuleList[GroupLinear] = ModuleList(
            GroupLinear(num_groups, a, b) for a, b in pairwise(widths)
        )
        init_prior_bias(self.classify.bias)
        nn.init.zeros_(self.regress[-1].weight)
        nn.init.zeros_(self.regress[-1].bias)

    @torch.no_grad()
    def init_equal_predictions(self) -> None:
        """Give the class and box heads of all groups the initial weights of the first (LW-DETR).

        The projections of the groups remain different, so the groups select different tokens.
        """
        for layer in (self.classify, *self.regress):
            layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
            layer.bias.copy_(layer.bias[:1].expand_as(layer.bias))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {
            "norm_weight": ParameterAxes((Axis.GROUP,)),
            "norm_bias": ParameterAxes((Axis.GROUP,)),
            "classify.weight": ParameterAxes((Axis.GROUP, Axis.CLASS), init_weights_by_group),
            "classify.bias": ParameterAxes((Axis.GROUP, Axis.CLASS), init_prior_bias),
        }

    def content(self, tokens: Tensor, groups: GroupIndex) -> Tensor:
        """Return the content [B,K,M,C] of tokens [B,1|K,M,C]: a linear layer and a layer norm."""
        x = self.project(tokens, groups)
        weight, bias = self.norm_weight[groups], self.norm_bias[groups]
        if is_computed_alone(len(weight), x):
            return F.layer_norm(x, x.shape[-1:], weight[0], bias[0])
        return F.layer_norm(x, x.shape[-1:]) * weight.unsqueeze(1) + bias.unsqueeze(1)

    def offsets(self, content: Tensor, groups: GroupIndex) -> Tensor:
        """Return the offsets of boxes from their anchors [B,K,M,4], before the sigmoid."""
        *hidden, last = self.regress
        for layer in hidden:
            content = F.relu(layer(content, groups))
        return last(content, groups)


class Proposals(LearnedQueries):
    """Two-stage DAB-Deformable-DETR, as in detrex.

    The queries of a group are the N tokens with the highest scores of any class. Their boxes become
    the references and their features the contents. The scores of all tokens are computed without
    gradients, because only selected tokens have a loss. They are computed for one group after the
    other, because there are many tokens. The heads then run again, with gradients, on the selected
    tokens. An image with fewer than N tokens has fewer queries.
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
        self.num_groups = num_groups
        self.num_queries = num_queries
        self.heads = GroupHeads(num_groups, channels, num_classes)

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        groups = self.active_groups
        tokens, anchors = self.anchors(memory)
        scores = []
        for group in group_numbers(self.active_group_list, self.num_groups):
            scores.append(self.score(tokens, slice(group, group + 1)))
        index = self.select(torch.cat(scores, dim=1), anchors)
        content = self.heads.content(gather_rows(tokens, index), groups)
        boxes = self.boxes(gather_rows(anchors, index), self.heads.offsets(content, groups))
        logits = self.heads.classify(content, groups)
        proposals = self.predictions(logits, boxes, content, memory)
        # The losses of the proposals train the heads. The decoder's losses do not, so the reference
        # is detached.
        reference = self.initial_reference(boxes.detach(), groups)
        return Queries(self.initial_content(content, groups), reference, proposals=proposals)

    def independent_groups(self) -> tuple[int, ...]:
        return tuple(range(self.num_groups)) if self.step_groups is None else self.step_groups

    def anchors(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return tokens [B,S,C] and the anchor of every token [B,S,4], as `boxes` takes it."""
        return encoder_proposals(memory)

    def boxes(self, anchors: Tensor, offsets: Tensor) -> Tensor:
        """Return the boxes [B,K,N,4] of anchors [B,K,N,4], given their offsets [B,K,N,4]."""
        return (offsets + anchors).sigmoid()

    def predictions(
        self, logits: Tensor, boxes: Tensor, _content: Tensor, _memory: Memory
    ) -> Predictions:
        """Return what the proposals predict, [B,K,N,.], given their logits, boxes and content."""
        return Predictions(logits, boxes)

    @torch.no_grad()
    def score(self, tokens: Tensor, groups: slice) -> Tensor:
        """Return the logit of the most likely class of all tokens [B,S,C]: [B,K,S]."""
        content = self.heads.content(tokens.unsqueeze(1), groups)
        return self.heads.classify(content, groups).amax(-1)

    def select(self, scores: Tensor, anchors: Tensor) -> Tensor:
        """Return the indices [B,K,N,1] of the tokens with the highest scores [B,K,S].

        Tokens without a valid anchor may be selected, too.
        """
        num_queries = min(self.num_queries, scores.shape[-1])
        return scores.topk(num_queries, dim=-1).indices.unsqueeze(-1)

    def initial_content(self, content: Tensor, groups: GroupIndex) -> Tensor:
        """Return the content [B,K,N,C] of the queries, given that of their tokens."""
        return content.detach()

    def initial_reference(self, boxes: Tensor, groups: GroupIndex) -> Tensor:
        """Return the reference [B,K,N,4] of the queries, given the boxes of their tokens."""
        return boxes


class MixedProposals(Proposals):
    """DINO's mixed query selection: the reference comes from the token, the content is learned."""

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

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"embedding": QUERY_TABLE}

    def initial_content(self, content: Tensor, groups: GroupIndex) -> Tensor:
        num_queries = content.shape[2]
        return self.embedding[groups, :num_queries].expand(content.shape[0], -1, -1, -1)


class ProposalsWithLearnedOffsets(MixedProposals):
    """LW-DETR's query selection: the reference is the token's box, moved by a learned offset.

    The content is learned, as in `MixedProposals`. Anchors, boxes and offsets are those of
    `groupdetr.ops.boxes.move_boxes`, without a sigmoid. The decoder's losses train the learned
    offset, but not the heads. If there are fewer tokens than N, every group has the first rows of
    its own tables.
    """

    def __init__(
        self,
        num_groups: int,
        num_queries: int,
        channels: int,
        num_classes: int,
        inference_group: int | None,
    ) -> None:
        super().__init__(num_groups, num_queries, channels, num_classes, inference_group)
        self.learned_offset = nn.Parameter(torch.zeros(num_groups, num_queries, 4))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {**super().parameter_axes(), "learned_offset": QUERY_TABLE}

    def anchors(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return tokens [B,S,C] and anchors cx, cy, w, h in [0,1]; both are zero where invalid."""
        boxes, invalid = token_boxes(memory)
        return memory.tokens.masked_fill(invalid, 0.0), boxes.masked_fill(invalid, 0.0)

    def boxes(self, anchors: Tensor, offsets: Tensor) -> Tensor:
        return move_boxes(anchors, offsets)

    def initial_reference(self, boxes: Tensor, groups: GroupIndex) -> Tensor:
        num_queries = boxes.shape[2]
        return move_boxes(boxes, self.learned_offset[groups, :num_queries])


def group_numbers(groups: slice | list[int], num_groups: int) -> Sequence[int]:
    """Return the numbers of the groups that an index of ``num_groups`` groups selects."""
    return range(num_groups)[groups] if isinstance(groups, slice) else groups


def init_weights_by_group(weight: Tensor) -> None:
    """Initialise weights [K,out,in] in place, those of every group as `torch.nn.Linear` does."""
    for group_weight in weight:
        init_linear_weight(group_weight)


def encoder_proposals(memory: Memory) -> tuple[Tensor, Tensor]:
    """Return tokens [B,S,C] and the anchor box of every token before the sigmoid [B,S,4].

    In the padding, and where an anchor is too close to 0 or 1, the token is zero and the anchor
    infinite.
    """
    boxes, invalid = token_boxes(memory)
    anchors = boxes.logit().masked_fill(invalid, float("inf"))
    return memory.tokens.masked_fill(invalid, 0.0), anchors


def token_boxes(memory: Memory) -> tuple[Tensor, Tensor]:
    """Return a box of every token, cx, cy, w, h [B,S,4], and where it is not valid [B,S,1] bool.

    A box is centred on its token, and it is larger on coarser levels. It is not valid in the
    padding, and where one of its numbers is too close to 0 or 1.
    """
    centres = token_centres(memory)  # [B,S,2]
    sizes = []
    for level, (height, width) in enumerate(memory.shapes):
        sizes.append(centres.new_full((height * width,), SIZE * 2.0**level))
    widths_heights = torch.cat(sizes)[:, None].expand_as(centres)
    boxes = torch.cat([centres, widths_heights], dim=-1)
    is_inside = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1)
    return boxes, (memory.padding | ~is_inside).unsqueeze(-1)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``x`` [B,S,C] that ``index`` [B,K,N,1] selects: [B,K,N,C]."""
    flat_index = index.flatten(1, 2).expand(-1, -1, x.shape[-1])
    return x.gather(1, flat_index).unflatten(1, index.shape[1:3])
