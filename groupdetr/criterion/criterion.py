"""The set criterion: match (per stage, image and group), compare, normalise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from groupdetr.criterion.pairs import Boxes, Pairing
from groupdetr.criterion.term import Term
from groupdetr.errors import DivergedError
from groupdetr.groups import Match, mean_over_groups
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.aux_outputs import Stages
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects, Target


class SetCriterion(nn.Module):
    """Outputs and targets to named losses, ready to be summed: ``{"layer5/giou": 0.41, ...}``."""

    def __init__(self, terms: Sequence[Term], match: Match, pairing: Pairing | None = None) -> None:
        super().__init__()
        self.terms, self.match, self.pairing = tuple(terms), match, pairing or Boxes()
        self.cost, self.loss = Cost(self.terms, self.pairing), Loss(self.terms, self.pairing)

    def forward(
        self, outputs: Outputs, targets: Sequence[Target], mean_objects: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``mean_objects``: objects of a batch, averaged over the batches that share an optimizer step; by default
        over the ranks of this one."""
        objects = Objects.from_targets(
            targets, at_least=2
        )  # for none and for one torch.compile makes other graphs
        if mean_objects is None:
            mean_objects = mean_over_ranks(objects.boxes.new_full((), sum(objects.counts)))
        losses: dict[str, Tensor] = {}
        for stages in outputs.stages():
            values = self.loss(
                stages.predictions, objects, self.assign(stages, objects), mean_objects
            )
            groups = stages.copies * (stages.among or stages.predictions.logits.shape[2])
            names = [f"{name}/{term.name}" for term in self.terms for name in stages.names]
            losses |= zip(names, (values / mean_over_groups(groups, mean_objects)).unbind())
        return losses

    def compile_parts(self, **options: Any) -> None:
        """Let torch.compile, with its ``options``, make one kernel or few of the costs, and so of the losses.

        The number of objects may change: the few graphs that this takes are made in the first steps. The solver
        between the two is on the host.
        """
        if self.pairing.compiles:
            self.cost.compile(**options)
            self.loss.compile(**options)

    def assign(self, stages: Stages, objects: Objects) -> Assignment:
        """The assignment of all stages, by one copy of all costs to the host and one of all pairs back, unless it is
        known beforehand."""
        if stages.assignment is not None:
            return stages.assignment
        return self.match(self.costs(stages, objects), objects.counts).to(objects.boxes.device)

    @torch.no_grad()
    def costs(self, stages: Stages, objects: Objects) -> np.ndarray:
        """[L,B,K,T,N], finite."""
        costs: np.ndarray = (
            self.cost(*self.pairing.lay_out(stages.predictions, objects)).cpu().numpy()
        )
        if not np.isfinite(costs).all():
            broken = [
                name for name, cost in zip(stages.names, costs) if not np.isfinite(cost).all()
            ]
            raise DivergedError(
                "a matching cost is not finite",
                f"stage {', '.join(broken)}",
                "lower the learning rate",
            )
        return costs


class Cost(nn.Module):
    """Of every query for every object of its image, the weighted sum of the terms: [L,B,K,T,N].

    Of what was laid out before, in the order of memory: a kernel that gathered for itself would read the logits
    object by object, and wait for each.
    """

    def __init__(self, terms: Sequence[Term], pairing: Pairing) -> None:
        super().__init__()
        self.terms, self.pairing = terms, pairing

    def forward(self, *laid_out: Tensor) -> Tensor:
        pairs = self.pairing.all(*laid_out)
        first, *others = self.terms
        total = first.cost_weight * first.cost(pairs)
        for term in others:
            total.add_(term.cost(pairs), alpha=term.cost_weight)
        return total


class Loss(nn.Module):
    """Of all stages by each of the terms, weighted, before the normaliser: [terms * L]."""

    def __init__(self, terms: Sequence[Term], pairing: Pairing) -> None:
        super().__init__()
        self.terms, self.pairing = terms, pairing

    def forward(
        self,
        predictions: Predictions,
        objects: Objects,
        assignment: Assignment,
        mean_objects: Tensor,
    ) -> Tensor:
        pairs = self.pairing.matched(predictions, objects, assignment, mean_objects)
        return torch.cat([term.loss_weight * term.loss(pairs) for term in self.terms])


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a scalar over all processes; itself if there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()
