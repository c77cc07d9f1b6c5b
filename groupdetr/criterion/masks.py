"""Terms of masks: cross-entropy and dice at random points.

The losses are those of Mask2Former (Cheng et al. 2022, Sec. 3.3).

Published code draws new points for every prediction, and for every mask of the loss. Here an image
has one set of points, shared by all groups and layers and by matching and losses. The pixels are
sampled once, and the logits of a mask at all points are one row of a matrix product. Masks of full
size are never computed. Costs are those of the queries of an image for the objects of this image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groupdetr.criterion.pairs import ObjectTotals, PairBuilder
from groupdetr.criterion.term import AllPairsT, MatchedPairsT, Term
from groupdetr.ops.level_sizes import level_sizes
from groupdetr.ops.masks import mask_logits
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.masks import CroppedMasks, MaskFeatures
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import TargetBatch
from groupdetr.structures.tensor_dataclass import require_count

MAX_LOGITS = 1 << 22  # mask logits at points that are computed at once


class MeasuredMasks(Protocol):
    """Pairs with measures of their masks: all pairs [L,B,K,T,N], or matched pairs summed to [L]."""

    cross_entropy: Tensor
    dice: Tensor


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
class PointCrossEntropy(Term[MeasuredMasks, MeasuredMasks]):
    """Binary cross-entropy of a mask, averaged over points.

    >>> cross_entropy = groupdetr.PointCrossEntropy(cost_weight=5, loss_weight=5)  # Mask2Former's
    """

    name: ClassVar[str] = "mask"
    location: ClassVar[str | None] = "mask"

    def cost(self, pairs: MeasuredMasks) -> Tensor:
        return pairs.cross_entropy

    def loss(self, pairs: MeasuredMasks) -> Tensor:
        return pairs.cross_entropy


@dataclass(frozen=True)
class Dice(Term[MeasuredMasks, MeasuredMasks]):
    """One minus the dice coefficient, with 1 added to numerator and denominator.

    >>> dice = groupdetr.Dice(cost_weight=5, loss_weight=5)  # the weights of Mask2Former
    """

    name: ClassVar[str] = "dice"
    location: ClassVar[str | None] = "mask"

    def cost(self, pairs: MeasuredMasks) -> Tensor:
        return pairs.dice

    def loss(self, pairs: MeasuredMasks) -> Tensor:
        return pairs.dice


@dataclass(frozen=True)
class PointCounts:
    """How many random points of an image masks are compared at.

    The loss of a mask uses importance sampling (PointRend, Kirillov et al. 2020). There are three
    times as many candidates as points. Three quarters of the points are the candidates where the
    mask is least certain; one quarter are further random points.
    """

    cost: int  # points of a matching cost: the first of the candidates
    loss: int  # points of a loss, at least as many

    @property
    def candidates(self) -> int:
        """Random points from which the uncertain ones are chosen."""
        return 3 * self.loss

    @property
    def uncertain(self) -> int:
        """Points of a mask that are chosen because the mask is least certain there."""
        return 3 * self.loss // 4

    @property
    def sampled(self) -> int:
        """All points that are sampled in an image: candidates, then the further random points."""
        return self.candidates + self.loss - self.uncertain


class MaskPairBuilder(PairBuilder[AllPairsT, MatchedPairsT]):
    """Measures cross-entropy and dice of masks at points. Subclasses build pairs with them.

    Everything is computed outside of autocast, which would cast the matrix products to lower
    precision.
    """

    # The matrix products have other sizes in every image, so compiling does not help.
    compiles: ClassVar[bool] = False
    # How predicted masks are continued outside of the image, see `point_sample`
    padding_mode: ClassVar[str] = "zeros"

    @abstractmethod
    def point_counts(self, height: int, width: int) -> PointCounts:
        """Return the numbers of points for mask features of this size."""

    @abstractmethod
    def sample_targets(self, masks: CroppedMasks, points: Tensor) -> Tensor:
        """Return the annotated masks [T,P] float32 at points [P,2], in pixels of the image."""

    def with_points(
        self, layers: Sequence[MaskFeatures], generator: torch.Generator | None = None
    ) -> list[MaskFeatures]:
        """Return the mask features of layers, sampled at the random points of their images.

        All layers have the same points. If there are points already, they are kept. ``generator``
        as in `MaskFeatures.with_points`.
        """
        counts = self.point_counts(*layers[0].pixels.shape[-2:])
        first = layers[0].with_points(counts.sampled, generator, self.padding_mode)
        assert first.points is not None
        others = []
        for features in layers[1:]:
            is_sampled = features.points is not None
            others.append(
                features if is_sampled else features.sampled_at(first.points, self.padding_mode)
            )
        return [first, *others]

    def mask_costs(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """Return cross-entropy and dice of every query with every object: [2,L,B,K,T,N].

        Layers and images are processed one by one. In the padding of the targets they are zero.
        """
        layers, images, groups, queries, _ = predictions.logits.shape
        embeddings = predictions.embeddings_of_masks
        costs = embeddings.new_zeros(
            2, layers, images, groups, targets.labels.shape[1], queries, dtype=torch.float32
        )
        for image, sampled in enumerate(self.sample(predictions, targets)):
            num_points = sampled.counts.cost
            target_masks = sampled.target_masks[:, :num_points]
            objects = len(target_masks)
            for layer, embedding in enumerate(embeddings[:, image].float()):
                pixels = sampled.pixels[layer % len(sampled.pixels)][:, :num_points]
                logits = mask_logits(embedding.flatten(0, 1), pixels)  # [K*N,P]
                both = torch.stack(pairwise_mask_costs(logits, target_masks))  # [2,T,K*N]
                both = both.view(2, -1, groups, queries).transpose(1, 2)
                costs[:, layer, image, :, :objects] = both
        return costs

    def mask_losses(
        self, predictions: Predictions, targets: TargetBatch, assignment: Assignment
    ) -> Tensor:
        """Return cross-entropy and dice of the matched pairs, summed over them: [2,L].

        Only the masks of matched queries are computed, and only at the points.
        """
        groups, queries = predictions.logits.shape[2:4]
        # Pairs are sorted by image. If an image has more objects than a group has queries, some
        # objects have no query.
        matched_objects = [min(count, queries) for count in targets.counts]
        pairs_per_image = [groups * count for count in matched_objects]
        embeddings = assignment.gather(predictions.embeddings_of_masks).float()
        sums = []
        for image_embeddings, image_target, sampled in zip(
            embeddings.split(pairs_per_image, 1),
            assignment.target.split(pairs_per_image, 1),
            self.sample(predictions, targets),
        ):
            # The layers that share their mask features are processed together.
            layers = len(image_embeddings) // len(sampled.pixels)
            by_layer = []
            for layer_embeddings, layer_target, pixels in zip(
                image_embeddings.split(layers), image_target.split(layers), sampled.pixels
            ):
                by_layer.append(
                    point_losses(
                        layer_embeddings,
                        layer_target,
                        pixels,
                        sampled.target_masks,
                        sampled.counts,
                    )
                )
            sums.append(torch.cat(by_layer, dim=1))
        return torch.stack(sums).sum(0)

    def sample(self, predictions: Predictions, targets: TargetBatch) -> Iterator[SampledImage]:
        """Yield the mask features and the target masks of every image at its points."""
        # In training the points exist already: the encoder samples them. In validation they are the
        # same for all images and every time, so that validations can be compared, whatever their
        # batch size and number of processes are.
        generator = torch.Generator(predictions.logits.device).manual_seed(0)
        features_of_layers = self.with_points(predictions.mask_features_by_layer(), generator)
        first = features_of_layers[0]
        counts = self.point_counts(*first.pixels.shape[-2:])
        assert first.points is not None
        height, width = first.shape
        size = level_sizes([(height, width)], first.points.dtype, first.points.device)
        for image, (points, masks) in enumerate(zip(first.points, targets.cropped_masks)):
            pixels = []
            for features in features_of_layers:
                assert features.sampled is not None
                pixels.append(features.sampled[image])
            yield SampledImage(pixels, self.sample_targets(masks, points * size), counts)


@dataclass
class SampledImage:
    """The features of an image and its target masks at the P points of the image."""

    pixels: list[Tensor]  # [C,P] each: of every layer, or one if all layers share them
    target_masks: Tensor  # [T,P] float32
    counts: PointCounts


@dataclass(frozen=True)
class PointSampledMasks(MaskPairBuilder[AllMaskPairs, MatchedMaskPairs]):
    """Pairs of masks, measured at ``num_points`` points each; see `PointCounts`.

    >>> terms = [
    ...     groupdetr.Softmax(2, 2),
    ...     groupdetr.PointCrossEntropy(5, 5),
    ...     groupdetr.Dice(5, 5),
    ... ]
    >>> pairs = groupdetr.PointSampledMasks(num_points=12544)  # the settings of Mask2Former
    >>> criterion = groupdetr.SetCriterion(terms, pair_builder=pairs)
    """

    locations: ClassVar[tuple[str, ...]] = ("mask",)

    num_points: int  # points of a mask that are measured

    def __post_init__(self) -> None:
        require_count("num_points", self.num_points)

    def point_counts(self, _height: int, _width: int) -> PointCounts:
        return PointCounts(self.num_points, self.num_points)

    @property
    def num_sampled(self) -> int:
        """All points that are sampled in an image."""
        return PointCounts(self.num_points, self.num_points).sampled

    def sample_targets(self, masks: CroppedMasks, points: Tensor) -> Tensor:
        return masks.at(points)

    def cost_inputs(
        self, predictions: Predictions, targets: TargetBatch
    ) -> tuple[Tensor | None, ...]:
        """Return scores, cross-entropy and dice of `AllMaskPairs`."""
        with torch.autocast(predictions.logits.device.type, enabled=False):
            layers, images, groups, queries, _ = predictions.logits.shape
            labels = targets.labels.view(1, images, 1, 1, -1)
            labels = labels.expand(layers, -1, groups, queries, -1)
            scores = predictions.logits.float().softmax(-1).gather(-1, labels).mT
            return scores, *self.mask_costs(predictions, targets)

    def all_pairs(self, *cost_inputs: Any) -> AllMaskPairs:
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
            cross_entropy, dice = self.mask_losses(predictions, targets, assignment)
            target_classes = (layer, image, group, query, targets.labels[image, target])
            return MatchedMaskPairs(
                predictions.logits, target_classes, cross_entropy, dice, objects=objects
            )


def point_losses(
    embedding: Tensor, target: Tensor, pixels: Tensor, target_masks: Tensor, counts: PointCounts
) -> Tensor:
    """Return cross-entropy and dice of the pairs of an image, summed over M: [2,L].

    ``embedding`` [L,M,C|C+1] of the matched queries, ``target`` [L,M] the indices of their objects
    in ``target_masks`` [T,P], ``pixels`` [C,P] the features of the image at its points.
    """
    # As many rows of all layers as `MAX_LOGITS` allows make one chunk. Chunks are as large as
    # possible, because each has a gradient of the size of the pixels. Activations are recomputed in
    # backward, because they are much larger than the inputs.
    rows = max(1, MAX_LOGITS // counts.sampled)
    chunks = zip(embedding.flatten(0, 1).split(rows), target.flatten().split(rows))
    losses = []
    for chunk_embedding, chunk_target in chunks:
        losses.append(
            checkpoint(
                losses_at_uncertain_points,
                chunk_embedding,
                chunk_target,
                pixels,
                target_masks,
                counts,
                use_reentrant=False,
            )
        )
    return torch.cat(losses, dim=1).view(2, *target.shape).sum(2)


def losses_at_uncertain_points(
    embedding: Tensor, target: Tensor, pixels: Tensor, target_masks: Tensor, counts: PointCounts
) -> Tensor:
    """Return cross-entropy and dice of every pair, [2,M], for embeddings [M,C|C+1]."""
    logits = mask_logits(embedding, pixels)

    with torch.no_grad():
        # A mask is least certain where its logit is nearest to zero.
        certainty = logits[:, : counts.candidates].abs()
        uncertain = certainty.topk(counts.uncertain, dim=1, largest=False, sorted=False)
        # The points behind the candidates are the random ones of every mask.
        random = torch.arange(counts.candidates, counts.sampled, device=logits.device)
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
