"""Where the queries of a family come from, and how a model gets K groups of them.

Each class is one kind of queries. ``attach`` prepares a model for K groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from groupdetr.huggingface.grouping import OTHER_GROUPS, Grouping
from groupdetr.huggingface.new_groups import NewGroup
from groupdetr.huggingface.query_embedding import GroupedEmbedding


class QuerySource(Protocol):
    """A kind of queries."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the modules that every group has a copy of, in the base model."""

    def num_queries(self, base: Any) -> int:
        """Return the number of queries of a group, N."""

    def attach(self, grouping: Grouping, base: Any, new_group: NewGroup) -> None:
        """Let the base model compute K groups of queries in training mode."""


@dataclass(frozen=True)
class LearnedQueries:
    """Tables of learned queries: embeddings whose ``weight`` the model reads."""

    parts: tuple[str, ...]

    def num_queries(self, base: Any) -> int:
        return int(getattr(base, self.parts[0]).num_embeddings)

    def attach(self, grouping: Grouping, base: Any, new_group: NewGroup) -> None:
        """Replace each embedding by one with K groups."""
        for name in self.parts:
            original = getattr(base, name)
            others = []
            for _ in range(grouping.num_groups - 1):
                others.append(new_group(grouping.model, base, name).weight.detach())
            # [K-1,N,C], also if K is 1
            table = original.weight.new_empty((len(others), *original.weight.shape))
            for row, other in zip(table, others):
                row.copy_(other)
            setattr(base, name, GroupedEmbedding(original, table, grouping))
            grouping.originals[name] = original


class GroupedHead:
    """Hooks that let a module run with the parameters of K groups.

    The module itself has those of group 0. Its input has the groups one after the other along
    ``axis``, and so has its output. The input of the first head of a sequence has no groups yet:
    ``shared_input``.
    """

    def __init__(
        self, grouping: Grouping, others: nn.ModuleList, axis: int, shared_input: bool
    ) -> None:
        self.grouping, self.others = grouping, others
        self.axis, self.shared_input = axis, shared_input
        # The inputs of the other groups, from the hook before the module to the one after it
        self._inputs: tuple[Tensor, ...] = ()

    def attach(self, head: nn.Module) -> None:
        """Let the module compute all groups in training mode."""
        self.grouping.before(head, self._keep_primary_group)
        self.grouping.after(head, self._add_other_groups)

    def _keep_primary_group(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.grouping.active:
            return None
        (x,) = args
        num_groups = self.grouping.num_groups
        inputs = (x,) * num_groups if self.shared_input else x.chunk(num_groups, self.axis)
        self._inputs = inputs[1:]
        return (inputs[0],), kwargs

    def _add_other_groups(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not self.grouping.active:
            return output
        inputs, self._inputs = self._inputs, ()
        outputs = [other(x) for other, x in zip(self.others, inputs, strict=True)]
        return torch.cat([output, *outputs], self.axis)


def attach_heads(
    grouping: Grouping, base: nn.Module, names: tuple[str, ...], axis: int, new_group: NewGroup
) -> None:
    """Give every group its copies of a sequence of heads of the base model."""
    all_others = nn.ModuleDict()
    setattr(grouping.model, OTHER_GROUPS, all_others)
    for i, name in enumerate(names):
        copies = []
        for _ in range(grouping.num_groups - 1):
            copies.append(new_group(grouping.model, base, name))
        others = nn.ModuleList(copies)
        all_others[name] = others
        grouping.heads[name] = getattr(base, name)
        GroupedHead(grouping, others, axis, shared_input=i == 0).attach(getattr(base, name))


@dataclass(frozen=True)
class EncoderProposals:
    """The best-scoring tokens of the encoder, chosen by heads of each group (RT-DETR).

    From the first head to the decoder, the groups are in the batch axis, [K*B,...], where the first
    B rows are those of group 0. So the model chooses the proposals of each group, and adds
    denoising queries to them, by its own code. The model has to see the objects of all K*B rows.
    """

    parts: tuple[str, ...]

    def num_queries(self, base: Any) -> int:
        return int(base.config.num_queries)

    def attach(self, grouping: Grouping, base: Any, new_group: NewGroup) -> None:
        attach_heads(grouping, base, self.parts, axis=0, new_group=new_group)
        grouping.before(base, _RepeatLabels(grouping))
        grouping.before(base.decoder, _GroupsToQueries(grouping))
        grouping.after(base, _OutputsOfEncoderProposals(grouping))


class _RepeatLabels:
    """Repeat the labels for every group, because each has denoising queries of its own."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.grouping.active or kwargs.get("labels") is None:
            return None
        return args, {**kwargs, "labels": [*kwargs["labels"]] * self.grouping.num_groups}


class _GroupsToQueries:
    """Move the groups from the batch axis to the axis of the queries, before the decoder."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.grouping.active:
            return None
        kwargs = dict(kwargs)
        for name in ("inputs_embeds", "reference_points"):
            kwargs[name] = self.grouping.batch_to_queries(kwargs[name])
        return args, kwargs


class _OutputsOfEncoderProposals:
    """Give what the base model returns of its proposals the shapes of its other outputs."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if not self.grouping.active:
            return output
        self.grouping.require_named(output)
        for name in ("enc_topk_logits", "enc_topk_bboxes", "init_reference_points"):
            output[name] = self.grouping.batch_to_queries(output[name])
        # These have a row for every token of the encoder. Nothing is computed from them.
        for name in ("enc_outputs_class", "enc_outputs_coord_logits"):
            output[name] = self.grouping.primary_group(output[name])
        return output


@dataclass(frozen=True)
class SharedProposals:
    """Queries projected from the boxes of shared proposals (two-stage Deformable DETR).

    transformers computes no loss for the proposals of this family, so their heads get no gradient,
    and copies of them would never differ. The groups share the proposals, and each group has its
    own projection of a proposal's box to a query.
    """

    parts: tuple[str, ...]

    def num_queries(self, base: Any) -> int:
        return int(base.config.two_stage_num_proposals)

    def attach(self, grouping: Grouping, base: Any, new_group: NewGroup) -> None:
        attach_heads(grouping, base, self.parts, axis=1, new_group=new_group)
        grouping.before(base.decoder, _RepeatReferencePoints(grouping))
        grouping.after(base, _OutputsOfSharedProposals(grouping))


class _RepeatReferencePoints:
    """Repeat the reference points [B,N,4] for every group, before the decoder."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.grouping.active:
            return None
        points = kwargs["reference_points"]
        repeated = points.repeat(1, self.grouping.num_groups, 1)
        return args, {**kwargs, "reference_points": repeated}


class _OutputsOfSharedProposals:
    """Repeat the initial reference points, which the heads use, for every group."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if self.grouping.active:
            points = self.grouping.require_named(output)["init_reference_points"]
            output["init_reference_points"] = points.repeat(1, self.grouping.num_groups, 1)
        return output
