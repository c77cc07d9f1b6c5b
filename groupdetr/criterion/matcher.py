"""DETR's matcher: optimal one-to-one assignment of queries to objects (Carion et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from groupdetr.criterion.pairs import PairBuilder
from groupdetr.criterion.term import Term
from groupdetr.errors import DivergedError
from groupdetr.groups import Match
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.supervised_predictions import SupervisedPredictions
from groupdetr.structures.targets import TargetBatch


class HungarianMatcher(nn.Module):
    """DETR's matcher, for every layer and image, and within every group.

    The cost of a pair (query, object) is the weighted sum of the costs of the terms. The function
    ``match`` finds the cheapest assignment: `match_groups` within each group (Group DETR, Eq. 6),
    `match_naively` among the queries of all groups (Table 7 b).

    The Hungarian algorithm runs on the CPU. The costs of all layers, images and groups are one
    tensor, which is copied to the host once per step, and the pairs are one tensor, which is copied
    back once. On a GPU every copy waits until all work queued before it is done, so a copy for each
    layer, image or group would cost more time than the matching itself.
    """

    def __init__(self, terms: Sequence[Term], match: Match, pair_builder: PairBuilder) -> None:
        super().__init__()
        self.match = match
        self.pair_builder = pair_builder
        self.cost = MatchingCost(terms, pair_builder)

    def forward(self, supervised: SupervisedPredictions, targets: TargetBatch) -> Assignment:
        """Return the assignment of all L layers, [L,M] pairs on the device of the targets."""
        # Costs of every query for every object, on the host.
        costs = self.costs(supervised, targets)

        # L * B * K independent problems; the padding of the targets is left out.
        assignment = self.match(costs, targets.counts)

        # The pairs of all problems in one copy.
        return assignment.to(targets.boxes.device)

    @torch.no_grad()
    def costs(self, supervised: SupervisedPredictions, targets: TargetBatch) -> np.ndarray:
        """Return the costs [L,B,K,T,N] on the host.

        `DivergedError` if one is not finite: the assignment would have no meaning.
        """
        # Gather and convert what the terms need, in eager mode.
        cost_inputs = self.pair_builder.cost_inputs(supervised.predictions, targets)

        # The weighted sum of all terms, possibly compiled.
        costs = self.cost(*cost_inputs)

        # The costs of impossible objects are not finite either, so the check below finds them.
        if targets.invalid is not None:
            costs.masked_fill_(targets.invalid[:, None, :, None], float("nan"))

        # The one copy to the host. The check comes after it, because a check on the device would
        # need a copy of its own.
        host_costs: np.ndarray = costs.cpu().numpy()
        require_finite(host_costs, supervised.names)
        return host_costs


class MatchingCost(nn.Module):
    """Weighted sum of the costs of the terms, [L,B,K,T,N]: every query with every object.

    It takes `PairBuilder.cost_inputs`. torch.compile can make one kernel of it.
    """

    def __init__(self, terms: Sequence[Term], pair_builder: PairBuilder) -> None:
        super().__init__()
        self.terms = terms
        self.pair_builder = pair_builder

    def forward(self, *cost_inputs: Tensor) -> Tensor:
        pairs = self.pair_builder.all_pairs(*cost_inputs)
        first, *others = self.terms

        # A new tensor of the first term, so that the tensors of `pairs` stay as they are.
        total = first.cost_weight * first.cost(pairs)

        # The other terms are added in place: it is the largest tensor of the criterion.
        for term in others:
            total.add_(term.cost(pairs), alpha=term.cost_weight)
        return total


def require_finite(costs: np.ndarray, names: Sequence[str]) -> None:
    """Raise `DivergedError` with the names of the layers [L] whose costs [L,...] are not finite."""
    if np.isfinite(costs).all():
        return
    layers = [name for name, cost in zip(names, costs) if not np.isfinite(cost).all()]
    raise DivergedError(
        "a matching cost is not finite",
        f"predictions of {', '.join(layers)}",
        "lower the learning rate",
    )
