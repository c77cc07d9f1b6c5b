"""Denoising queries (DN-DETR, Li et al. 2022): noised objects in front of every group, to be put right again.

The sequence of group k is [DN_k | Q_k], each with its own noise. Denoising queries come in copies of all objects; a
copy sees itself and the matching queries, and matching queries never see a denoising one, whose box and label would
tell them the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.groups import Denoise
from groupdetr.ops.boxes import inverse_sigmoid
from groupdetr.structures import Assignment, Denoising, Memory, Objects, Queries, Target

Noise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # labels [...] and boxes [...,4] to noised ones


class LabelAndBoxNoise:
    """DN-DETR's: a label becomes any of ``num_classes`` with probability ``label_ratio``; a box moves by up to
    ``box_scale`` of its half size, and each of its sides changes by up to ``box_scale`` of itself."""

    def __init__(self, num_classes: int, label_ratio: float, box_scale: float) -> None:
        self.num_classes, self.label_ratio, self.box_scale = num_classes, label_ratio, box_scale

    def __call__(self, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        flipped = torch.rand(labels.shape, device=labels.device) < self.label_ratio
        labels = torch.where(flipped, torch.randint_like(labels, self.num_classes), labels)
        reach = self.box_scale * torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], dim=-1)
        return labels, (boxes + (2 * torch.rand_like(boxes) - 1) * reach).clamp(0, 1)


class LabelEmbedding(nn.Module):
    """What a query knows at first: a label or that it knows none, and as last channel if it is a denoising one."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes + 1, channels - 1))

    def forward(self, labels: Tensor) -> Tensor:
        """[...] to [...,C], of a denoising query."""
        return F.pad(self.weight[labels], (0, 1), value=1.0)

    def of_none(self) -> Tensor:
        """[C] of a matching query."""
        return F.pad(self.weight[-1], (0, 1))


class DenoisingQueries(nn.Module):
    """The queries of ``matching``, and in training denoising ones in front.

    ``copies`` says how many copies of T objects there are; ``denoise`` in which groups they count; ``eps`` is that of
    `inverse_sigmoid`, which bounds the noised boxes.
    """

    def __init__(
        self, matching: nn.Module, labels: LabelEmbedding, noise: Noise, copies: Callable[[int], int],
        denoise: Denoise, eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.matching, self.labels, self.noise = matching, labels, noise
        self.copies, self.denoise, self.eps = copies, denoise, eps

    def forward(self, memory: Memory, targets: Sequence[Target] | None) -> Queries:
        queries = self.matching(memory, targets)
        queries = replace(queries, content=queries.content + self.labels.of_none())
        if targets is None or not self.training:  # nothing to denoise
            return queries
        return self.in_front(queries, Objects.from_targets(targets))

    def in_front(self, queries: Queries, objects: Objects) -> Queries:
        """Denoising queries D before the matching ones N: [B,K,D+N,.]"""
        images, groups, num_matching, _ = queries.content.shape
        most = objects.labels.shape[1]
        copies = self.copies(most)
        labels = objects.labels[:, None, None].expand(-1, groups, copies, -1)
        boxes = objects.boxes[:, None, None].expand(-1, groups, copies, -1, -1)
        labels, boxes = (x.flatten(2, 3) for x in self.noise(labels, boxes))  # [B,K,D], [B,K,D,4]
        padding = padded_slots(objects, copies)
        content = self.labels(labels).masked_fill(padding.unsqueeze(-1), 0.0)
        reference = inverse_sigmoid(boxes, self.eps).sigmoid().masked_fill(padding.unsqueeze(-1), 0.5)
        supervised = self.denoise(groups)
        return Queries(
            torch.cat([content.to(queries.content.dtype), queries.content], dim=2),
            torch.cat([reference, queries.reference.expand(images, -1, -1, -1)], dim=2),
            blocked=copies_apart(copies, most, num_matching).to(content.device),
            denoising=Denoising(known_pairs(objects.counts, copies, supervised, most), padding, copies, supervised),
        )

    @property
    def inference_group(self) -> int | None:
        """The group that inference keeps, None for all."""
        return self.matching.inference_group  # type: ignore[return-value]

    @inference_group.setter
    def inference_group(self, group: int | None) -> None:
        self.matching.inference_group = group  # type: ignore[assignment]


def padded_slots(objects: Objects, copies: int) -> Tensor:
    """[B,1,D] bool: the slots that images with fewer objects than others leave empty."""
    counts = torch.tensor(objects.counts).unsqueeze(1)
    padding = torch.arange(objects.labels.shape[1]) >= counts
    return padding.repeat(1, copies).unsqueeze(1).to(objects.labels.device)


def copies_apart(copies: int, objects: int, matching: int) -> Tensor:
    """[D+N,D+N] bool, True where a query (row) does not see another (column): a denoising one of another copy."""
    copy = torch.arange(copies).repeat_interleave(objects)
    copy = torch.cat([copy, copy.new_full((matching,), -1)])
    return (copy[:, None] != copy) & (copy >= 0)


def known_pairs(counts: Sequence[int], copies: int, groups: int, most: int) -> Assignment:
    """[1,M]: in each of ``groups`` the t-th object of an image is that of slot t of every copy."""
    images = []
    for image, count in enumerate(counts):
        group, copy, target = (x.ravel() for x in np.indices((groups, copies, count)))
        images.append((np.full(group.shape, image), group, copy * most + target, target))
    columns = (np.concatenate(column) for column in zip(*images))
    return Assignment(*(torch.from_numpy(column.astype(np.int64)).unsqueeze(0) for column in columns))
