"""Denoising queries (DN-DETR, Li et al. 2022; DINO, Zhang et al. 2023): noised ground truth.

In training, every group of queries is [denoising queries | matching queries]. The denoising queries
are noised labels and boxes of the objects, which the decoder learns to reconstruct. Each group has
its own noise. The papers repeat the objects in several "denoising groups"; here these are called
copies, because groups are the K groups of Group DETR. Denoising queries attend to their own copy
and to the matching queries. Matching queries never attend to denoising queries, whose boxes and
labels would leak the ground truth. With DINO's contrastive noise, a copy has two queries for every
object: a positive one to reconstruct and a negative one to classify as background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.groups import Denoise
from groupdetr.modeling.parameter_axes import Axis, ParameterAxes
from groupdetr.modeling.queries.query_source import GroupIndex, QuerySource
from groupdetr.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from groupdetr.ops.transfer import to_device
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.memory import Memory
from groupdetr.structures.queries import Denoising, Queries
from groupdetr.structures.targets import Target, TargetBatch, require_known_labels
from groupdetr.structures.tensor_dataclass import require

ALL_GROUPS = slice(None)


class LabelAndBoxNoise:
    """DN-DETR's noise: label flipping, centre shifting and box scaling.

    A label is replaced with probability ``label_ratio`` by a random one of ``num_classes``, which
    may be the same. The centre of a box moves by up to ``box_scale`` of half its size, and its
    width and height change by up to ``box_scale`` of themselves.

    Labels are [...,E,T] and boxes [...,E,T,4], for T objects with E queries each.
    """

    boxes_per_object = 1  # E, the number of denoising queries of an object in one copy

    def __init__(self, num_classes: int, label_ratio: float, box_scale: float) -> None:
        self.num_classes = num_classes
        self.label_ratio = label_ratio
        self.box_scale = box_scale

    def __call__(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.noise_labels(labels), self.noise_boxes(boxes)

    def noise_labels(self, labels: Tensor) -> Tensor:
        """Return labels of which some are replaced."""
        flipped = torch.rand(labels.shape, device=labels.device) < self.label_ratio
        return torch.where(flipped, torch.randint_like(labels, self.num_classes), labels)

    def noise_boxes(self, boxes: Tensor) -> Tensor:
        """Return noised boxes (cx, cy, w, h), clamped to [0,1]."""
        size = boxes[..., 2:]
        max_change = self.box_scale * torch.cat([size / 2, size], dim=-1)
        uniform = 2 * torch.rand_like(boxes) - 1  # in [-1,1]
        return (boxes + uniform * max_change).clamp(0, 1)

    def unsupervised(self, padding: Tensor) -> Tensor:
        """Return the denoising queries [B,1,D] bool that have no loss.

        ``padding`` [B,1,D] is True for queries without an object. Here they have no loss.
        """
        return padding


class ContrastiveNoise(LabelAndBoxNoise):
    """DINO's contrastive denoising: a positive and a negative query for every object.

    Each corner coordinate of a positive box moves by up to ``box_scale`` of half the box's size,
    and of a negative box by one to two times that. Queries without an object count as negative.
    """

    boxes_per_object = 2

    def noise_boxes(self, boxes: Tensor) -> Tensor:
        """Return noised boxes. On axis E, the first is positive and the second negative."""
        distance = torch.rand_like(boxes)
        distance[..., 1, :, :] += 1.0  # negative boxes
        sign = 2.0 * torch.randint_like(boxes, 2) - 1.0
        sides = torch.cat([boxes[..., 2:], boxes[..., 2:]], dim=-1)  # w, h, w, h
        max_change = self.box_scale * sides / 2
        corners = cxcywh_to_xyxy(boxes) + sign * distance * max_change
        return xyxy_to_cxcywh(corners.clamp(0, 1))

    def unsupervised(self, padding: Tensor) -> Tensor:
        """All denoising queries have a loss."""
        return torch.zeros_like(padding)


class LabelEmbedding(nn.Module):
    """The content of a denoising query: an embedding of its label (DINO).

    As in DINO's code, the table has one row more than there are classes, which is never used.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes + 1, channels))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        return {"weight": ParameterAxes((Axis.CLASS_OR_NO_OBJECT,), nn.init.normal_)}

    def forward(self, labels: Tensor, groups: GroupIndex = ALL_GROUPS) -> Tensor:
        """Return the content [...,C] of denoising queries with labels [...].

        ``groups`` are those of which the queries are.
        """
        return self.weight[labels]

    def matching_content(self, content: Tensor) -> Tensor:
        """Return the content [...,C] of matching queries, given their learned content."""
        return content


class GroupLabelEmbedding(LabelEmbedding):
    """`LabelEmbedding` with a table of its own for every group (PaddleDetection's Group DINO)."""

    def __init__(self, num_groups: int, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels)
        self.weight = nn.Parameter(torch.randn(num_groups, num_classes + 1, channels))

    def parameter_axes(self) -> dict[str, ParameterAxes]:
        axes = (Axis.GROUP, Axis.CLASS_OR_NO_OBJECT)
        return {"weight": ParameterAxes(axes, nn.init.normal_)}

    def forward(self, labels: Tensor, groups: GroupIndex = ALL_GROUPS) -> Tensor:
        """Return the content [B,K,D,C] of denoising queries with labels [B,K,D]."""
        tables = self.weight[groups]
        group = torch.arange(len(tables), device=labels.device).unsqueeze(1)  # [K,1]
        return tables[group, labels]


class IndicatorLabelEmbedding(LabelEmbedding):
    """DN-DETR's label embedding, whose last channel is an indicator.

    The indicator is 1 for denoising queries and 0 for matching queries. Matching queries get the
    embedding of an additional "no object" label.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels - 1)

    def forward(self, labels: Tensor, groups: GroupIndex = ALL_GROUPS) -> Tensor:
        return F.pad(super().forward(labels, groups), (0, 1), value=1.0)

    def matching_content(self, content: Tensor) -> Tensor:
        return content + F.pad(self.weight[-1], (0, 1))


@dataclass
class NoisedObjects:
    """The noised objects of the groups of a training step, as `DenoisingQueries.draw` draws them.

    The D queries of a group are copies * E * T, for T padded objects with E queries each.
    """

    labels: Tensor  # [B,K,D] int64
    boxes: Tensor  # [B,K,D,4] cx, cy, w, h in [0,1]
    padding: Tensor  # [B,1,D] bool, True for queries without an object
    queries_per_copy: int  # E * T
    denoising: Denoising

    def slice_groups(self, first: int, last: int) -> NoisedObjects:
        """Return the groups from ``first`` to ``last``, ``last`` excluded."""
        return replace(
            self,
            labels=self.labels[:, first:last],
            boxes=self.boxes[:, first:last],
            denoising=self.denoising.slice_groups(first, last),
        )


class DenoisingQueries(QuerySource):
    """The queries of ``matching``; in training, denoising queries are put in front of them.

    If no image has objects, there are no denoising queries, but the autograd graph uses the same
    parameters. So it is the same on every process of a distributed run.

    ``copies`` returns the number of copies for T objects. ``denoise`` returns the number of groups
    in which denoising queries are supervised. ``eps`` is that of `inverse_sigmoid`, which bounds
    the noised boxes.
    """

    def __init__(
        self,
        matching: QuerySource,
        labels: LabelEmbedding,
        noise: LabelAndBoxNoise,
        copies: Callable[[int], int],
        denoise: Denoise,
        eps: float,
    ) -> None:
        super().__init__()
        self.matching = matching
        self.labels = labels
        self.noise = noise
        self.copies = copies
        self.denoise = denoise
        self.eps = eps
        # While a step runs its groups in chunks: the groups of the step, and their noised objects.
        self.groups_of_step: tuple[int, ...] = ()
        self.noised_of_step: NoisedObjects | None = None

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        queries = self.matching(memory, targets)
        queries = replace(queries, content=self.labels.matching_content(queries.content))
        if not self.training:
            return queries
        if self.noised_of_step is None:
            noised = self.draw(memory, targets, num_groups=queries.content.shape[1])
        else:
            assert self.step_groups is not None
            first = self.groups_of_step.index(self.step_groups[0])
            noised = self.noised_of_step.slice_groups(first, first + len(self.step_groups))
        return self.add_denoising(queries, noised)

    def draw(
        self, memory: Memory, targets: Sequence[Target] | None, num_groups: int
    ) -> NoisedObjects:
        """Return noised objects for ``num_groups`` groups, each with noise of its own."""
        objects = pad_targets(targets, memory)
        if targets:
            require_known_labels(targets, self.noise.num_classes)
            shape = list(objects.boxes.shape[1:])
            require(shape[-1] == 4, f"this detector needs boxes [T,4] of every target, not {shape}")
            if any(target.max_label is None for target in targets):
                # They were created on a GPU, and reading them here would wait for it. An index out
                # of range would end the process. The criterion finds such labels later.
                labels = objects.labels.clamp(0, self.noise.num_classes - 1)
                objects = replace(objects, labels=labels)
        num_objects = objects.labels.shape[1]  # T, with padding
        copies = self.copies(num_objects)
        boxes_per_object = self.noise.boxes_per_object
        queries_per_copy = boxes_per_object * num_objects

        # Repeat the objects before they are noised, so that every query has its own noise.
        labels = objects.labels[:, None, None, None]  # [B,1,1,1,T]
        labels = labels.expand(-1, num_groups, copies, boxes_per_object, -1)
        boxes = objects.boxes[:, None, None, None]  # [B,1,1,1,T,4]
        boxes = boxes.expand(-1, num_groups, copies, boxes_per_object, -1, -1)
        labels, boxes = self.noise(labels, boxes)

        # Images with fewer objects than others have denoising queries without an object.
        padding = padded_queries(objects, copies * boxes_per_object)
        supervised_groups = self.denoise(num_groups)
        assignment = denoising_assignment(
            objects.counts, copies, supervised_groups, stride=queries_per_copy
        )
        denoising = Denoising(
            assignment.to(padding.device),
            self.noise.unsupervised(padding),
            copies,
            supervised_groups,
        )
        return NoisedObjects(
            labels.flatten(2, 4), boxes.flatten(2, 4), padding, queries_per_copy, denoising
        )

    def add_denoising(self, queries: Queries, noised: NoisedObjects) -> Queries:
        """Put D denoising queries in front of the N matching queries of every group: [B,K,D+N,.].

        ``noised`` are the objects of the same groups.
        """
        images, _, num_matching, _ = queries.content.shape
        no_object = noised.padding.unsqueeze(-1)
        content = self.labels(noised.labels, self.matching.active_groups)
        content = content.masked_fill(no_object, 0.0)
        # The inverse sigmoid clamps the boxes, so that they keep the distance `eps` from 0 and 1.
        reference = inverse_sigmoid(noised.boxes, self.eps).sigmoid().masked_fill(no_object, 0.5)
        matching_reference = queries.reference.expand(images, -1, -1, -1)
        denoising = noised.denoising
        return replace(
            queries,
            content=torch.cat([content.to(queries.content.dtype), queries.content], dim=2),
            reference=torch.cat(
                [reference.to(matching_reference.dtype), matching_reference], dim=2
            ),
            blocked=denoising_attn_mask(
                denoising.copies, noised.queries_per_copy, num_matching, content.device
            ),
            denoising=denoising,
        )

    # The groups in chunks

    def independent_groups(self) -> tuple[int, ...] | None:
        return self.matching.independent_groups()

    @contextmanager
    def run_groups(self, groups: tuple[int, ...]) -> Iterator[None]:
        with super().run_groups(groups), self.matching.run_groups(groups):
            yield

    @contextmanager
    def same_random_numbers(
        self, memory: Memory, targets: Sequence[Target] | None
    ) -> Iterator[None]:
        groups = self.independent_groups()
        assert groups is not None
        self.groups_of_step = groups
        self.noised_of_step = self.draw(memory, targets, len(groups))
        try:
            yield
        finally:
            self.groups_of_step = ()
            self.noised_of_step = None

    @property
    def inference_group(self) -> int | tuple[int, ...] | None:
        """The group that runs at inference; several groups in rising order; None for all groups."""
        return self.matching.inference_group

    @inference_group.setter
    def inference_group(self, group: int | tuple[int, ...] | None) -> None:
        self.matching.inference_group = group


def num_copies(num_denoising: int, objects: int) -> int:
    """Return how many copies of the objects fit into ``num_denoising`` queries, at least one.

    DINO calls this the dynamic number of denoising groups.
    """
    return max(1, num_denoising // max(1, objects))


def pad_targets(targets: Sequence[Target] | None, memory: Memory) -> TargetBatch:
    """Return the targets as a padded batch. Without targets, no image has objects."""
    if not targets:
        no_labels = memory.padding.new_zeros(0, dtype=torch.int64)
        no_boxes = memory.tokens.new_zeros(0, 4)
        targets = [Target(no_labels, no_boxes)] * len(memory.tokens)
    return TargetBatch.from_targets(targets)


def padded_queries(objects: TargetBatch, repeats: int) -> Tensor:
    """Return [B,1,D] bool, True for denoising queries without an object.

    D is ``repeats`` times the number of padded objects T.
    """
    counts = torch.tensor(objects.counts).unsqueeze(1)
    padding = torch.arange(objects.labels.shape[1]) >= counts  # [B,T]
    padding = to_device(padding, objects.labels.device)
    return padding.repeat(1, repeats).unsqueeze(1)


def denoising_attn_mask(
    copies: int, queries_per_copy: int, num_matching: int, device: torch.device | None = None
) -> Tensor:
    """Return [D+N,D+N] bool, True where a query (row) does not attend to another (column).

    No query attends to a denoising query of another copy; matching queries belong to no copy.
    """
    copy = torch.arange(copies, device=device).unsqueeze(1).expand(-1, queries_per_copy).flatten()
    copy = torch.cat([copy, copy.new_full((num_matching,), -1)])
    is_denoising = copy >= 0
    return (copy[:, None] != copy) & is_denoising


def denoising_assignment(
    counts: Sequence[int], copies: int, groups: int, stride: int
) -> Assignment:
    """Return the known assignment [1,M] of the denoising queries, one group after the other.

    In each of ``groups``, object t of an image is assigned to the t-th query of every copy. Copies
    begin ``stride`` queries apart. ``counts`` [B] are the numbers of objects.
    """
    image_columns, query_columns, target_columns = [], [], []
    for image, count in enumerate(counts):
        copy, target = np.indices((copies, count))
        image_columns.append(np.full(copies * count, image))
        query_columns.append((copy * stride + target).ravel())
        target_columns.append(target.ravel())
    image_column = np.concatenate(image_columns)
    query_column = np.concatenate(query_columns)
    target_column = np.concatenate(target_columns)
    pairs_per_group = len(image_column)
    # All groups have the same pairs.
    return Assignment.from_columns(
        np.tile(image_column, groups)[None],
        np.arange(groups).repeat(pairs_per_group)[None],
        np.tile(query_column, groups)[None],
        np.tile(target_column, groups)[None],
    )
