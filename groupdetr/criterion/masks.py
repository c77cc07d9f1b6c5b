"""Masks: cross-entropy and dice at random points, each as cost and as loss (Mask2Former, Cheng et al. 2022, Sec. 3.3).

Published code draws points anew for every prediction, and for every mask that is learned. Here an image has one set of
points, for all groups and layers and for matching and learning: the pixels are sampled once, and a mask at all points
is a row of a matrix product. Whole masks are never made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects

ROWS = 1 << 22  # numbers of masks at points that are computed at once


@dataclass
class AllMasks:
    """Every query with every object of its image, all [L,B,K,T,N]."""

    scores: Tensor  # the probability of the object's class
    entropy: Tensor
    dice: Tensor


@dataclass
class MatchedMasks:
    """Every query that has an object, with it."""

    logits: Tensor  # [L,B,K,N,classes+1] of all queries
    classes: tuple[Tensor, ...]  # where they speak of the objects' classes: five indices [L,M]
    entropy: Tensor  # [L] summed over the M pairs
    dice: Tensor  # [L]
    objects: Tensor  # the mean of a batch: what sums over objects are going to be divided by
    told: Tensor  # of these, those that have a query


@dataclass(frozen=True)
class PointEntropy:
    """Binary cross-entropy, averaged over points."""

    cost_weight: float
    loss_weight: float
    name: str = "mask"

    def cost(self, pairs: AllMasks) -> Tensor:
        return pairs.entropy

    def loss(self, pairs: MatchedMasks) -> Tensor:
        return pairs.entropy


@dataclass(frozen=True)
class Dice:
    """One minus the dice coefficient, one added above and below."""

    cost_weight: float
    loss_weight: float
    name: str = "dice"

    def cost(self, pairs: AllMasks) -> Tensor:
        return pairs.dice

    def loss(self, pairs: MatchedMasks) -> Tensor:
        return pairs.dice


class Measured(NamedTuple):
    """Two sums, or two matrices."""

    entropy: Tensor
    dice: Tensor


def in_single_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Without the autocast that it is called under, which would take matrix products for a network's."""

    @wraps(method)
    def exact(self: AtPoints, predictions: Predictions, *others: Any) -> Any:
        with torch.autocast(predictions.logits.device.type, enabled=False):
            return method(self, predictions, *others)

    return exact


@dataclass(frozen=True)
class AtPoints:
    """Masks face to face at ``num_points`` points.

    Of three times as many candidates, the three quarters of ``num_points`` where a mask is least certain teach it, and
    one quarter wherever they fall (PointRend, Kirillov et al. 2020). Masks are matched at the first of the candidates.
    """

    num_points: int
    compiles: ClassVar[bool] = False  # matrix products, of other sizes in every image

    @property
    def candidates(self) -> int:
        return 3 * self.num_points

    @property
    def uncertain(self) -> int:
        return 3 * self.num_points // 4

    @property
    def drawn(self) -> int:
        """Points of an image in all."""
        return self.candidates + self.num_points - self.uncertain

    @in_single_precision
    def lay_out(self, predictions: Predictions, objects: Objects) -> tuple[Tensor, ...]:
        """Scores, entropy and dice of `AllMasks`, layer by layer and image by image."""
        stages, images, groups, queries, _ = predictions.logits.shape
        label = objects.labels.view(1, images, 1, 1, -1).expand(stages, -1, groups, queries, -1)
        scores = predictions.logits.float().softmax(-1).gather(-1, label).mT
        measured = scores.new_zeros(2, *scores.shape)
        for image, (points, wanted) in enumerate(self.images(predictions, objects)):
            points, wanted = points[:, : self.num_points], wanted[:, : self.num_points]
            for stage, embedding in enumerate(predictions.masks.embedding[:, image].float()):
                found = torch.stack(of_all(embedding.flatten(0, 1) @ points, wanted))
                measured[:, stage, image, :, : len(wanted)] = found.view(
                    2, -1, groups, queries
                ).transpose(1, 2)
        return scores, *measured

    def all(self, *laid_out: Tensor) -> AllMasks:
        return AllMasks(*laid_out)

    @in_single_precision
    def matched(
        self,
        predictions: Predictions,
        objects: Objects,
        assignment: Assignment,
        mean_objects: Tensor,
    ) -> MatchedMasks:
        stage, image, group, query, target = assignment.columns
        groups, queries = predictions.logits.shape[2:4]
        told = [min(count, queries) for count in objects.counts]
        masks = (
            assignment.gather(predictions.masks.embedding)
            .float()
            .split([groups * count for count in told], 1)
        )
        wants = target.split([groups * count for count in told], 1)
        sums = [
            self.learned(mask, points, wanted, want)
            for mask, want, (points, wanted) in zip(masks, wants, self.images(predictions, objects))
        ]
        entropy, dice = torch.stack(sums).sum(0)
        classes = (stage, image, group, query, objects.labels[image, target])
        told_of = mean_objects - (sum(objects.counts) - sum(told))
        return MatchedMasks(
            predictions.logits, classes, entropy, dice, mean_objects.clamp(min=1), told_of
        )

    def images(self, predictions: Predictions, objects: Objects) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every image the pixels at its points [C,P], and whether its objects are there [T,P]."""
        always_the_same = torch.Generator(predictions.logits.device).manual_seed(
            0
        )  # in evaluations, to be compared
        canvas = predictions.masks.canvas.with_points(self.drawn, always_the_same)
        assert canvas.points is not None
        assert canvas.sampled is not None
        side = canvas.points.new_tensor([canvas.shape[1], canvas.shape[0]])
        for pixels, points, masks in zip(canvas.sampled, canvas.points, objects.bitmaps):
            yield pixels, masks.at(points * side)

    def learned(self, embedding: Tensor, pixels: Tensor, wanted: Tensor, target: Tensor) -> Tensor:
        """Of masks [L,M,C] of an image, of objects ``target`` [L,M]: entropy and dice, summed over M: [2,L].

        As many rows at once as may be, of all layers: each time the pixels get a gradient of their own size. What is
        computed on the way is computed again for backward, as it is far larger than what it is made of.
        """
        rows = max(1, ROWS // self.drawn)
        parts = [
            checkpoint(self.of_matched, *part, pixels, wanted, use_reentrant=False)
            for part in zip(embedding.flatten(0, 1).split(rows), target.flatten().split(rows))
        ]
        return torch.cat(parts, dim=1).view(2, *target.shape).sum(2)

    def of_matched(
        self, embedding: Tensor, target: Tensor, pixels: Tensor, wanted: Tensor
    ) -> Tensor:
        """Of masks [M,C]: [2,M]."""
        logits = embedding @ pixels
        with torch.no_grad():
            certain = logits[:, : self.candidates].abs()
            chosen = certain.topk(self.uncertain, dim=1, largest=False, sorted=False).indices
            fresh = torch.arange(self.candidates, self.drawn, device=chosen.device).expand(
                len(chosen), -1
            )
            place = torch.cat([chosen, fresh], dim=1)
            labels = wanted[target.unsqueeze(1), place]
        said = logits.gather(1, place)
        entropy = F.binary_cross_entropy_with_logits(said, labels, reduction="none").mean(1)
        inside = said.sigmoid()
        shared, areas = (inside * labels).sum(1), inside.sum(1) + labels.sum(1)
        return torch.stack([entropy, 1 - (2 * shared + 1) / (areas + 1)])


def of_all(logits: Tensor, wanted: Tensor) -> Measured:
    """Masks [Q,P] and objects [T,P] at the same points, all with all: [T,Q] each."""
    entropy = (F.softplus(logits).sum(1) - wanted @ logits.mT) / logits.shape[1]
    inside = logits.sigmoid_()
    areas = inside.sum(1) + wanted.sum(1, keepdim=True)
    return Measured(entropy, 1 - (2 * (wanted @ inside.mT) + 1) / (areas + 1))
