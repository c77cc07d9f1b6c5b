"""Terms of masks: cross-entropy and dice at random points.

The losses are those of Mask2Former (Cheng et al. 2022, Sec. 3.3).

Published code draws new points for every prediction, and for every mask of the loss. Here an image
has one set of points, shared by all groups and layers and by matching and losses. The pixels are
sampled once, and the logits of a mask at all points are one row of a matrix product. Masks of full
size are never computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groupdetr.criterion.pairs import ObjectTotals, PairBuilder
from groupdetr.criterion.term import Term
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import TargetBatch
from groupdetr.structures.tensor_dataclass import require_count

MAX_LOGITS = 1 << 22  # mask logits at points that are computed at once


@dataclass
class AllMaskPairs:
    """Every query with every object of its image, all [L,B,K,T,N]."""

    scores: Tensor  # the probability of the object's class
    cross_entropy: Tensor
    dice: Tensor


@dataclass
class MatchedMaskPairs:
    """Every matched query with its object."""

    logits: Tensor  # [L,B,K,N,classes+1] of all queries
    target_classes: tuple[Tensor, ...]  # index of the logits of the objects' classes: five of [L,M]
    cross_entropy: Tensor  # [L] summed over the M pairs
    dice: Tensor  # [L] summed over the M pairs
    objects: ObjectTotals


@dataclass(frozen=True)
class PointCrossEntropy(Term[AllMaskPairs, MatchedMaskPairs]):
    """Binary cross-entropy of a mask, averaged over points.

    >>> cross_entropy = groupdetr.PointCrossEntropy(cost_weight=5, loss_weight=5)  # Mask2Former's
    """

    name: ClassVar[str] = "mask"
    location: ClassVar[str | None] = "mask"

    def cost(self, pairs: AllMaskPairs) -> Tensor:
        return pairs.cross_entropy

    def loss(self, pairs: MatchedMaskPairs) -> Tensor:
        return pairs.cross_entropy


@dataclass(frozen=True)
class Dice(Term[AllMaskPairs, MatchedMaskPairs]):
    """One minus the dice coefficient, with 1 added to numerator and denominator.

    >>> dice = groupdetr.Dice(cost_weight=5, loss_weight=5)  # the weights of Mask2Former
    """

    name: ClassVar[str] = "dice"
    location: ClassVar[str | None] = "mask"

    def cost(self, pairs: AllMaskPairs) -> Tensor:
        return pairs.dice

    def loss(self, pairs: MatchedMaskPairs) -> Tensor:
        return pairs.dice


@dataclass(frozen=True)
class PointSampledMasks(PairBuilder[AllMaskPairs, MatchedMaskPairs]):
    """Pairs of masks, measured at ``num_points`` points each.

    The loss of a mask uses importance sampling (PointRend, Kirillov et al. 2020). There are three
    times ``num_points`` candidates. Three quarters of ``num_points`` are the candidates where the
    mask is least certain; one quarter are further random points. The matching cost uses the first
    ``num_points`` candidates.

    Everything is computed outside of autocast, which would cast the matrix products to lower
    precision.

    >>> terms = [
    ...     groupdetr.Softmax(2, 2),
    ...     groupdetr.PointCrossEntropy(5, 5),
    ...     groupdetr.Dice(5, 5),
    ... ]
    >>> pairs = groupdetr.PointSampledMasks(num_points=12544)  # the settings of Mask2Former
    >>> criterion = groupdetr.SetCriterion(terms, pair_builder=pairs)
    """

    # The matrix products have other sizes in every image, so compiling does not help.
    compiles: ClassVar[bool] = False
    location: ClassVar[str] = "mask"

    num_points: int  # points of a mask that are measured

    def __post_init__(self) -> None:
        require_count("num_points", self.num_points)

    @property
    def num_candidates(self) -> int:
        """Random points from which the uncertain ones are chosen."""
        return 3 * self.num_points

    @property
    def num_uncertain(self) -> int:
        """Points of a mask that are chosen because the mask is least certain there."""
        return 3 * self.num_points // 4

    @property
    def num_sampled(self) -> int:
        """All points that are sampled in an image: candidates, then the further random points."""
        return self.num_candidates + self.num_points - self.num_uncertain

    def cost_inputs(self, predictions: Predictions, targets: TargetBatch) -> tuple[Tensor, ...]:
        """Return scores, cross-entropy and dice of `AllMaskPairs`.

        Layers and images are processed one by one. In the padding of the targets, cross-entropy and
        dice are zero.
        """
        with torch.autocast(predictions.logits.device.type, enabled=False):
            layers, images, groups, queries, _ = predictions.logits.shape
            labels = targets.labels.view(1, images, 1, 1, -1)
            labels = labels.expand(layers, -1, groups, queries, -1)
            scores = predictions.logits.float().softmax(-1).gather(-1, labels).mT

            mask_costs = scores.new_zeros(2, *scores.shape)
            for image, (pixels, target_masks) in enumerate(self.sample(predictions, targets)):
                pixels = pixels[:, : self.num_points]
                target_masks = target_masks[:, : self.num_points]
                objects = len(target_masks)
                for layer, embedding in enumerate(predictions.masks.embedding[:, image].float()):
                    logits = embedding.flatten(0, 1) @ pixels  # [K*N,P]
                    costs = torch.stack(pairwise_mask_costs(logits, target_masks))  # [2,T,K*N]
                    costs = costs.view(2, -1, groups, queries).transpose(1, 2)
                    mask_costs[:, layer, image, :, :objects] = costs
            return scores, *mask_costs

    def all_pairs(self, *cost_inputs: Tensor) -> AllMaskPairs:
        return AllMaskPairs(*cost_inputs)

    def matched_pairs(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        objects: ObjectTotals,
    ) -> MatchedMaskPairs:
        with torch.autocast(predictions.logits.device.type, enabled=False):
            layer, image, group, query, target = assignment.columns
            groups, queries = predictions.logits.shape[2:4]

            # Pairs are sorted by image. If an image has more objects than a group has queries, some
            # objects have no query.
            matched_objects = [min(count, queries) for count in targets.counts]
            pairs_per_image = [groups * count for count in matched_objects]
            embeddings = assignment.gather(predictions.masks.embedding).float()
            sums = []
            for image_embeddings, image_target, (pixels, target_masks) in zip(
                embeddings.split(pairs_per_image, 1),
                target.split(pairs_per_image, 1),
                self.sample(predictions, targets),
            ):
                sums.append(self.point_losses(image_embeddings, pixels, target_masks, image_target))
            cross_entropy, dice = torch.stack(sums).sum(0)

            target_classes = (layer, image, group, query, targets.labels[image, target])
            return MatchedMaskPairs(
                predictions.logits, target_classes, cross_entropy, dice, objects=objects
            )

    def sample(
        self, predictions: Predictions, targets: TargetBatch
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for every image its pixels [C,P] and its target masks [T,P] at its points."""
        # In training the points exist already: the pixel decoder samples them. In validation they
        # are the same for all images and every time, so that validations can be compared, whatever
        # their batch size and number of processes are.
        generator = torch.Generator(predictions.logits.device).manual_seed(0)
        features = predictions.masks.mask_features.with_points(self.num_sampled, generator)
        assert features.points is not None
        assert features.sampled is not None
        height, width = features.shape
        size = features.points.new_tensor([width, height])
        for pixels, points, masks in zip(features.sampled, features.points, targets.cropped_masks):
            yield pixels, masks.at(points * size)

    def point_losses(
        self, embedding: Tensor, pixels: Tensor, target_masks: Tensor, target: Tensor
    ) -> Tensor:
        """Return cross-entropy and dice of the pairs of an image, summed over M: [2,L].

        ``embedding`` [L,M,C] of the matched queries, ``target`` [L,M] the indices of their objects
        in ``target_masks`` [T,P].
        """
        # As many rows of all layers as `MAX_LOGITS` allows make one chunk. Chunks are as large as
        # possible, because each has a gradient of the size of the pixels. Activations are
        # recomputed in backward, because they are much larger than the inputs.
        rows = max(1, MAX_LOGITS // self.num_sampled)
        chunks = zip(embedding.flatten(0, 1).split(rows), target.flatten().split(rows))
        losses = []
        for chunk_embedding, chunk_target in chunks:
            losses.append(
                checkpoint(
                    self.losses_at_uncertain_points,
                    chunk_embedding,
                    chunk_target,
                    pixels,
                    target_masks,
                    use_reentrant=False,
                )
            )
        return torch.cat(losses, dim=1).view(2, *target.shape).sum(2)

    def losses_at_uncertain_points(
        self, embedding: Tensor, target: Tensor, pixels: Tensor, target_masks: Tensor
    ) -> Tensor:
        """Return cross-entropy and dice of every pair, [2,M], for embeddings [M,C]."""
        logits = embedding @ pixels

        with torch.no_grad():
            # A mask is least certain where its logit is nearest to zero.
            certainty = logits[:, : self.num_candidates].abs()
            uncertain = certainty.topk(self.num_uncertain, dim=1, largest=False, sorted=False)
            # The points behind the candidates are the random ones of every mask.
            random = torch.arange(self.num_candidates, self.num_sampled, device=logits.device)
            random = random.expand(len(logits), -1)
            points = torch.cat([uncertain.indices, random], dim=1)
            labels = target_masks[target.unsqueeze(1), points]

        logits = logits.gather(1, points)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
        scores = logits.sigmoid()
        intersection = (scores * labels).sum(1)
        areas = scores.sum(1) + labels.sum(1)
        return torch.stack([cross_entropy, 1 - (2 * intersection + 1) / (areas + 1)])


class MaskCosts(NamedTuple):
    """Matching costs of masks, [T,Q] each."""

    cross_entropy: Tensor
    dice: Tensor


def pairwise_mask_costs(logits: Tensor, target_masks: Tensor) -> MaskCosts:
    """Return the costs of every mask for every object.

    ``logits`` [Q,P] and ``target_masks`` [T,P] are values at the same points. The memory of
    ``logits`` is overwritten.
    """
    # Cross-entropy of logit x and label y is softplus(x) - x * y: the first part does not depend on
    # the object, the second is a matrix product.
    cross_entropy = (F.softplus(logits).sum(1) - target_masks @ logits.mT) / logits.shape[1]
    scores = logits.sigmoid_()
    intersection = target_masks @ scores.mT
    areas = scores.sum(1) + target_masks.sum(1, keepdim=True)
    return MaskCosts(cross_entropy, 1 - (2 * intersection + 1) / (areas + 1))
