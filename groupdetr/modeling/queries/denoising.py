"""Denoising queries (DN-DETR, Li et al. 2022; DINO, Zhang et al. 2023): noised objects, to be put right again.

The sequence of group k is [DN_k | Q_k], each with its own noise. Denoising queries come in copies of all objects; a
copy sees itself and the matching queries, and matching queries never see a denoising one, whose box and label would
tell them the answer. A copy may show an object more than once: as one to be found again, and as one to be refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.groups import Denoise
from groupdetr.ops.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.memory import Memory
from groupdetr.structures.queries import Denoising, Queries
from groupdetr.structures.targets import Objects, Target


class LabelAndBoxNoise:
    """DN-DETR's: a label becomes any of ``num_classes`` with probability ``label_ratio``; a box moves by up to
    ``box_scale`` of its half size, and each of its sides changes by up to ``box_scale`` of itself.

    Of labels [...,E,T] and boxes [...,E,T,4], E times each of T objects.
    """

    shown = 1  # E, how often a copy shows an object

    def __init__(self, num_classes: int, label_ratio: float, box_scale: float) -> None:
        self.num_classes, self.label_ratio, self.box_scale = num_classes, label_ratio, box_scale

    def __call__(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_labels(labels), self.of_boxes(boxes)

    def of_labels(self, labels: Tensor) -> Tensor:
        flipped = torch.rand(labels.shape, device=labels.device) < self.label_ratio
        return torch.where(flipped, torch.randint_like(labels, self.num_classes), labels)

    def of_boxes(self, boxes: Tensor) -> Tensor:
        reach = self.box_scale * torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], dim=-1)
        return (boxes + (2 * torch.rand_like(boxes) - 1) * reach).clamp(0, 1)

    def unsupervised(self, padding: Tensor) -> Tensor:
        """Who of [B,1,D] is told nothing: here where there is no object."""
        return padding


class ContrastiveNoise(LabelAndBoxNoise):
    """DINO's: a copy shows every object twice, less noised to be found again, and more so to be refused.

    The corners of a box move by up to ``box_scale`` of its half size, or by one to two times that. Empty slots are
    refused, too.
    """

    shown = 2

    def of_boxes(self, boxes: Tensor) -> Tensor:
        far = torch.rand_like(boxes)
        far[..., 1, :, :] += 1.0
        sign = 2.0 * torch.randint_like(boxes, 2) - 1.0
        reach = self.box_scale * boxes[..., 2:].repeat(*[1] * (boxes.ndim - 1), 2) / 2
        return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + sign * far * reach).clamp(0, 1))

    def unsupervised(self, padding: Tensor) -> Tensor:
        return torch.zeros_like(padding)


class LabelEmbedding(nn.Module):
    """What a denoising query knows at first: its label. (DINO; its table has a row more than is ever read.)"""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes + 1, channels))

    def forward(self, labels: Tensor) -> Tensor:
        """[...] to [...,C]"""
        return self.weight[labels]

    def of_matching(self, content: Tensor) -> Tensor:
        """What a matching query knows, from what it knew: [...,C]."""
        return content


class MarkedLabelEmbedding(LabelEmbedding):
    """DN-DETR's: a matching query has a label as well, that of no object, and the last channel tells them apart."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(num_classes, channels - 1)

    def forward(self, labels: Tensor) -> Tensor:
        return F.pad(super().forward(labels), (0, 1), value=1.0)

    def of_matching(self, content: Tensor) -> Tensor:
        return content + F.pad(self.weight[-1], (0, 1))


class DenoisingQueries(nn.Module):
    """The queries of ``matching``, and in training denoising ones in front.

    Without targets there are none of them, but the graph is the same: so it is on every process of a distributed run,
    whatever its images hold. ``copies`` says how many copies of T objects there are; ``denoise`` in which groups they
    count; ``eps`` is that of `inverse_sigmoid`, which bounds the noised boxes.
    """

    def __init__(
        self,
        matching: nn.Module,
        labels: LabelEmbedding,
        noise: LabelAndBoxNoise,
        copies: Callable[[int], int],
        denoise: Denoise,
        eps: float,
    ) -> None:
        super().__init__()
        self.matching, self.labels, self.noise = matching, labels, noise
        self.copies, self.denoise, self.eps = copies, denoise, eps

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        queries = self.matching(memory, targets)
        queries = replace(queries, content=self.labels.of_matching(queries.content))
        return self.denoised(queries, objects_of(targets, memory)) if self.training else queries

    def denoised(self, queries: Queries, objects: Objects) -> Queries:
        """With denoising queries D before the matching ones N: [B,K,D+N,.]"""
        images, groups, num_matching, _ = queries.content.shape
        copies, shown, most = (
            self.copies(objects.labels.shape[1]),
            self.noise.shown,
            objects.labels.shape[1],
        )
        labels = objects.labels[:, None, None, None].expand(-1, groups, copies, shown, -1)
        boxes = objects.boxes[:, None, None, None].expand(-1, groups, copies, shown, -1, -1)
        labels, boxes = (x.flatten(2, 4) for x in self.noise(labels, boxes))  # [B,K,D], [B,K,D,4]
        padding = padded_slots(objects, copies * shown)
        content = self.labels(labels).masked_fill(padding.unsqueeze(-1), 0.0)
        reference = (
            inverse_sigmoid(boxes, self.eps).sigmoid().masked_fill(padding.unsqueeze(-1), 0.5)
        )
        supervised = self.denoise(groups)
        known = known_pairs(objects.counts, copies, supervised, stride=shown * most).to(
            content.device
        )
        return replace(
            queries,
            content=torch.cat([content.to(queries.content.dtype), queries.content], dim=2),
            reference=torch.cat([reference, queries.reference.expand(images, -1, -1, -1)], dim=2),
            blocked=copies_apart(copies, shown * most, num_matching, content.device),
            denoising=Denoising(known, self.noise.unsupervised(padding), copies, supervised),
        )

    @property
    def inference_group(self) -> int | None:
        """The group that inference keeps, None for all."""
        return self.matching.inference_group  # type: ignore[return-value]

    @inference_group.setter
    def inference_group(self, group: int | None) -> None:
        self.matching.inference_group = group  # type: ignore[assignment]


def copies_that_fit(num_denoising: int, objects: int) -> int:
    """As many copies of ``objects`` as go into ``num_denoising`` queries, one at least (DINO's dynamic groups)."""
    return max(1, num_denoising // max(1, objects))


def objects_of(targets: Sequence[Target] | None, memory: Memory) -> Objects:
    """Those of the targets; without targets, none in any image."""
    nothing = Target(memory.padding.new_zeros(0, dtype=torch.int64), memory.tokens.new_zeros(0, 4))
    return Objects.from_targets(targets or [nothing] * len(memory.tokens))


def padded_slots(objects: Objects, times: int) -> Tensor:
    """[B,1,D] bool: the slots that images with fewer objects than others leave empty."""
    counts = torch.tensor(objects.counts).unsqueeze(1)
    padding = torch.arange(objects.labels.shape[1]) >= counts
    return padding.repeat(1, times).unsqueeze(1).to(objects.labels.device)


def copies_apart(
    copies: int, size: int, matching: int, device: torch.device | None = None
) -> Tensor:
    """[D+N,D+N] bool, True where a query (row) does not see another (column): a denoising one of another copy."""
    copy = torch.arange(copies, device=device).unsqueeze(1).expand(-1, size).flatten()
    copy = torch.cat([copy, copy.new_full((matching,), -1)])
    return (copy[:, None] != copy) & (copy >= 0)


def known_pairs(counts: Sequence[int], copies: int, groups: int, stride: int) -> Assignment:
    """[1,M], group after group: in each of ``groups`` the t-th object of an image is that of slot t of every copy,
    ``stride`` apart."""
    images = []
    for image, count in enumerate(counts):
        copy, target = (x.ravel() for x in np.indices((copies, count)))
        images.append((np.full(copy.shape, image), copy * stride + target, target))
    of_one = [np.concatenate(column) for column in zip(*images)]
    of_image, of_query, of_target = (np.tile(column, groups)[None] for column in of_one)
    return Assignment.of(
        of_image, np.arange(groups).repeat(len(of_one[0]))[None], of_query, of_target
    )
