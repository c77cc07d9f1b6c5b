"""The set criterion of DETR: match queries to objects, compare the matched pairs, normalise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groupdetr.criterion.classification import Softmax
from groupdetr.criterion.matcher import HungarianMatcher
from groupdetr.criterion.pairs import (
    BoxPairBuilder,
    ObjectTotals,
    PairBuilder,
    SoftmaxBoxPairBuilder,
)
from groupdetr.criterion.term import Term
from groupdetr.errors import DivergedError
from groupdetr.groups import Match, loss_normaliser, match_groups
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.step_objects import StepObjects
from groupdetr.structures.supervised_predictions import SupervisedPredictions
from groupdetr.structures.targets import (
    Target,
    TargetBatch,
    require_known_labels,
    require_targets,
    require_valid_targets,
)
from groupdetr.structures.tensor_dataclass import require

# What builds the pairs of terms that measure these locations.
PAIR_BUILDERS = {
    frozenset({"box"}): "criterion.pairs.BoxPairBuilder()",
    frozenset({"box3d"}): "EncodedBoxes3D()",
    frozenset({"mask"}): "PointSampledMasks(num_points)",
    frozenset({"box", "mask"}): "BoxesAndPointSampledMasks()",
}


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

    `ValueError` if terms are missing, do not fit ``pair_builder``, or have impossible weights.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        match: Match = match_groups,
        pair_builder: PairBuilder | None = None,
    ) -> None:
        super().__init__()
        require_terms(terms)
        require(
            callable(match),
            f"match must be a function such as groupdetr.match_groups, not {type(match).__name__}",
        )
        self.terms = tuple(terms)
        self.pair_builder = pair_builder or box_pair_builder(self.terms)
        require_fitting_pairs(self.terms, self.pair_builder)
        self.matcher = HungarianMatcher(self.terms, match, self.pair_builder)
        self.loss = MatchedLosses(self.terms, self.pair_builder)

    def forward(
        self, outputs: Outputs, targets: Sequence[Target], step: StepObjects | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted, normalised losses. Their sum is the loss of the training step.

        If the targets are a micro-batch, ``step`` has the numbers of objects of the whole optimizer
        step. By default the targets are a whole batch, or in distributed training the part of a
        batch that this process has.

        `ValueError` if the targets do not fit the outputs, or have impossible values.
        `DivergedError` if a matching cost is not finite.
        """
        require(
            isinstance(outputs, Outputs),
            "outputs must be groupdetr.Outputs, of a detector of this library or by "
            f"Outputs.from_flat, not {type(outputs).__name__}",
        )
        all_supervised = outputs.supervised()
        # The first entry has the matching queries, [L,B,K,N,.].
        logits = all_supervised[0].predictions.logits
        num_images, num_queries = logits.shape[1], logits.shape[3]
        num_classes = logits.shape[-1] - (1 if self.has_no_object else 0)
        self.require_fitting_targets(targets, num_images, num_classes, logits.device)

        # torch.compile specialises on sizes 0 and 1, so targets are padded to two objects or more.
        target_batch = TargetBatch.from_targets(targets, min_objects=2)
        if any(target.max_label is None for target in targets):
            # They were created on a GPU.
            target_batch = target_batch.mark_invalid(num_classes)
        objects = object_totals(target_batch, num_queries, step)

        losses: dict[str, Tensor] = {}
        for supervised in all_supervised:
            try:
                assignment = self.assign(supervised, target_batch)
            except DivergedError:
                require_valid_targets(targets, num_classes)
                raise
            summed = self.loss(supervised.predictions, target_batch, assignment, objects)
            normalised = summed / normaliser(supervised, objects)
            names = self.loss_names(supervised)
            losses.update(zip(names, normalised.unbind()))
        return losses

    @property
    def has_no_object(self) -> bool:
        """True if the last logit is "no object", as for a softmax, and no class."""
        return any(isinstance(term, Softmax) for term in self.terms)

    def require_fitting_targets(
        self, targets: Sequence[Target], num_images: int, num_classes: int, device: torch.device
    ) -> None:
        """Raise `ValueError` unless the targets have the form that the outputs and terms need.

        Nothing is read from a GPU.
        """
        require_targets(targets, num_images)
        numbers = self.pair_builder.numbers_of_a_box
        for target in targets:
            require(
                target.boxes.shape[1] == numbers,
                f"the boxes of a target must be [T,{numbers}] for this criterion, "
                f"not {list(target.boxes.shape)}",
            )
            require(
                target.boxes.device == device,
                f"a target is on {target.boxes.device} and the outputs are on {device}: "
                "move it by target.to(device)",
            )
        require_known_labels(targets, num_classes)

    def assign(self, supervised: SupervisedPredictions, targets: TargetBatch) -> Assignment:
        """Return the known assignment (denoising), or else that of the matcher."""
        if supervised.assignment is not None:
            require(
                not self.has_no_object,
                "denoising queries cannot be trained with Softmax, because those without an object "
                "have no logits: use Focal in its place",
            )
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
            self.matcher.computes_in_blocks = False
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
        objects: ObjectTotals,
    ) -> Tensor:
        pairs = self.pair_builder.matched_pairs(predictions, targets, assignment, objects)
        return torch.cat([term.loss_weight * term.loss(pairs) for term in self.terms])


def require_terms(terms: Sequence[Term]) -> None:
    """Raise `ValueError` unless ``terms`` are terms of different names with possible weights."""
    described = "terms must be a list of terms, such as [Focal(2, 2), L1(5, 5), GIoU(2, 2)]"
    require(isinstance(terms, Sequence), f"{described}, not {type(terms).__name__}")
    require(len(terms) > 0, f"{described}, and it is empty")
    names = []
    for term in terms:
        require(isinstance(term, Term), f"{described}, not of {type(term).__name__}")
        require(
            term.name not in names,
            f"two terms are called {term.name!r}: one of them would have no loss",
        )
        names.append(term.name)
        for name, weight in (("cost", term.cost_weight), ("loss", term.loss_weight)):
            require(
                0 <= weight < math.inf,
                f"the {name}_weight of {term.name!r} must be a finite number of 0 or more, "
                f"not {weight}",
            )


def require_fitting_pairs(terms: Sequence[Term], pair_builder: PairBuilder) -> None:
    """Raise `ValueError` unless all terms can measure the pairs that ``pair_builder`` builds."""
    measured = frozenset(term.location for term in terms if term.location is not None)
    fitting = PAIR_BUILDERS.get(measured)
    for term in terms:
        if term.location is None or term.location in pair_builder.locations:
            continue
        what = f"{type(term).__name__} cannot measure the pairs of {type(pair_builder).__name__}"
        if fitting is None:
            raise ValueError(f"{what}, and no pairs are of {' and '.join(sorted(measured))}")
        raise ValueError(f"{what}: pass pair_builder=groupdetr.{fitting}")


def box_pair_builder(terms: Sequence[Term]) -> BoxPairBuilder:
    """Return the builder of the pairs of 2D boxes that these terms measure."""
    if any(isinstance(term, Softmax) for term in terms):
        return SoftmaxBoxPairBuilder()
    return BoxPairBuilder()


def normaliser(supervised: SupervisedPredictions, objects: ObjectTotals) -> Tensor:
    """Return what the summed losses are divided by: objects, times groups, times copies.

    The groups are those of the training step, also if the predictions are a chunk of them. Every
    object has ``copies`` denoising queries in a group, or one matched query.
    """
    groups = supervised.total_groups or supervised.predictions.logits.shape[2]
    return loss_normaliser(supervised.copies * groups, objects.total, objects.parts)


def object_totals(targets: TargetBatch, num_queries: int, step: StepObjects | None) -> ObjectTotals:
    """Return the numbers of objects of the optimizer step that ``targets`` are a part of.

    ``num_queries`` is N, the queries of a group: no more objects of an image have a query. Without
    ``step``, the parts are the targets of all processes, whose numbers are added here.
    """
    require(
        step is None or isinstance(step, StepObjects),
        "step must be a StepObjects with the number of objects of every image of the optimizer "
        f"step, not {type(step).__name__}",
    )
    counts = targets.counts if step is None else step.counts
    matched = sum(min(count, num_queries) for count in counts)
    device = targets.boxes.device
    # On a GPU, filling a tensor does not wait for the work that is queued; copying a number does.
    num_objects = torch.full((), float(sum(counts)), device=device)
    num_matched = torch.full((), float(matched), device=device)
    if step is None:
        parts, (num_objects, num_matched) = sum_over_ranks(num_objects, num_matched)
    else:
        parts = step.parts
        require(
            sum(counts) >= sum(targets.counts),
            f"step has {sum(counts)} objects, but these targets alone have {sum(targets.counts)}; "
            "its counts must be those of all images of the optimizer step",
        )
    return ObjectTotals(num_objects, num_matched, parts)


def sum_over_ranks(*scalars: Tensor) -> tuple[int, tuple[Tensor, ...]]:
    """Return the number of processes, and the sums of scalars over them.

    Without distributed training, it is one process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1, scalars
    sums = torch.stack(scalars)
    torch.distributed.all_reduce(sums)
    return torch.distributed.get_world_size(), sums.unbind()
