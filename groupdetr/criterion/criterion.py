"""The set criterion of DETR: match queries to objects, compare the matched pairs, normalise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groupdetr.criterion.classification import Softmax
from groupdetr.criterion.matcher import HungarianMatcher
from groupdetr.criterion.pairs import BoxPairBuilder, PairBuilder, SoftmaxBoxPairBuilder
from groupdetr.criterion.term import Term
from groupdetr.groups import Match, loss_normaliser, match_groups
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.supervised_predictions import SupervisedPredictions
from groupdetr.structures.targets import Target, TargetBatch


class SetCriterion(nn.Module):
    """Turn outputs and targets into named losses: ``{"layer5/giou": 0.41, ...}``.

    The same ``terms`` are matching costs and losses. ``match`` assigns queries to objects given the
    costs, see `HungarianMatcher`. By default ``pair_builder`` builds pairs of 2D boxes:
    `SoftmaxBoxPairBuilder` if `Softmax` is one of the terms, otherwise `BoxPairBuilder`.

    The losses of a detector of your own, from its logits and boxes of all layers:

    >>> terms = [groupdetr.Focal(2, 2), groupdetr.L1(5, 5), groupdetr.GIoU(2, 2)]
    >>> criterion = groupdetr.SetCriterion(terms)
    >>> logits, boxes = torch.rand(6, 2, 3300, 80), torch.rand(6, 2, 3300, 4)
    >>> outputs = groupdetr.Outputs.from_flat(logits, boxes, num_groups=11)
    >>> targets = [
    ...     groupdetr.Target(torch.tensor([7]), torch.tensor([[0.5, 0.5, 0.2, 0.3]])),
    ...     groupdetr.Target(torch.tensor([], dtype=torch.long), torch.zeros(0, 4)),
    ... ]
    >>> loss = sum(criterion(outputs, targets).values())
    """

    def __init__(
        self,
        terms: Sequence[Term],
        match: Match = match_groups,
        pair_builder: PairBuilder | None = None,
    ) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.pair_builder = pair_builder or box_pair_builder(self.terms)
        self.matcher = HungarianMatcher(self.terms, match, self.pair_builder)
        self.loss = MatchedLosses(self.terms, self.pair_builder)

    def forward(
        self, outputs: Outputs, targets: Sequence[Target], mean_objects: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted, normalised losses. Their sum is the loss of the training step.

        ``mean_objects``, a scalar, is the number of objects of a batch, averaged over the batches
        that share an optimizer step. By default it is averaged over the ranks of this batch.
        """
        # torch.compile specialises on sizes 0 and 1, so targets are padded to two objects or more.
        target_batch = TargetBatch.from_targets(targets, min_objects=2)
        if mean_objects is None:
            num_objects = target_batch.boxes.new_full((), sum(target_batch.counts))
            mean_objects = mean_over_ranks(num_objects)

        losses: dict[str, Tensor] = {}
        for supervised in outputs.supervised():
            assignment = self.assign(supervised, target_batch)
            summed = self.loss(supervised.predictions, target_batch, assignment, mean_objects)
            normalised = summed / normaliser(supervised, mean_objects)
            names = self.loss_names(supervised)
            losses.update(zip(names, normalised.unbind()))
        return losses

    def assign(self, supervised: SupervisedPredictions, targets: TargetBatch) -> Assignment:
        """Return the known assignment (denoising), or else that of the matcher."""
        if supervised.assignment is not None:
            return supervised.assignment
        return self.matcher(supervised, targets)

    def loss_names(self, supervised: SupervisedPredictions) -> list[str]:
        """Return the names of the losses [terms * L] in the order of `MatchedLosses`."""
        names = []
        for term in self.terms:
            for layer in supervised.names:
                names.append(f"{layer}/{term.name}")
        return names

    def compile_parts(self, **options: object) -> None:
        """Compile the costs and the losses with torch.compile and its ``options``.

        The matching between the two runs on the host. The number of objects may change from step to
        step: the few graphs that this needs are compiled in the first steps.
        """
        if self.pair_builder.compiles:
            self.matcher.cost.compile(**options)
            self.loss.compile(**options)


class MatchedLosses(nn.Module):
    """Weighted losses of the matched pairs, by term and layer, before normalising: [terms * L]."""

    def __init__(self, terms: Sequence[Term], pair_builder: PairBuilder) -> None:
        super().__init__()
        self.terms = terms
        self.pair_builder = pair_builder

    def forward(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        mean_objects: Tensor,
    ) -> Tensor:
        pairs = self.pair_builder.matched_pairs(predictions, targets, assignment, mean_objects)
        return torch.cat([term.loss_weight * term.loss(pairs) for term in self.terms])


def box_pair_builder(terms: Sequence[Term]) -> BoxPairBuilder:
    """Return the builder of the pairs of 2D boxes that these terms measure."""
    if any(isinstance(term, Softmax) for term in terms):
        return SoftmaxBoxPairBuilder()
    return BoxPairBuilder()


def normaliser(supervised: SupervisedPredictions, mean_objects: Tensor) -> Tensor:
    """Return what the summed losses are divided by: objects, times groups, times copies.

    The groups are those of the training step, also if the predictions are a chunk of them. Every
    object has ``copies`` denoising queries in a group, or one matched query.
    """
    groups = supervised.total_groups or supervised.predictions.logits.shape[2]
    return loss_normaliser(supervised.copies * groups, mean_objects)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a scalar over all processes. Without distributed training, the scalar."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()
