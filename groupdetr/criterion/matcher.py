"""DETR's matcher: optimal one-to-one assignment of queries to objects (Carion et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from groupdetr.criterion.pairs import PairBuilder
from groupdetr.criterion.term import Term
from groupdetr.errors import DivergedError
from groupdetr.groups import Match
from groupdetr.ops.transfer import to_host
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.supervised_predictions import SupervisedPredictions
from groupdetr.structures.targets import TargetBatch

# Pairs (query, object) whose costs are computed at once on a CPU. Their intermediate results have
# one megabyte each.
MAX_PAIRS_AT_ONCE = 1 << 18
# With fewer pairs than these, all costs are computed at once: the operations of further blocks
# would take longer than the arithmetic.
MIN_PAIRS_FOR_BLOCKS = 1 << 15


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
        # A compiled cost has no intermediate results.
        self.computes_in_blocks = pair_builder.compiles

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
        predictions = supervised.predictions
        num_pairs = math.prod(predictions.logits.shape[:4]) * targets.labels.shape[1]
        in_blocks = self.computes_in_blocks and num_pairs >= MIN_PAIRS_FOR_BLOCKS
        if in_blocks and targets.boxes.device.type == "cpu":
            costs = self.costs_in_blocks(predictions, targets)
        else:
            # Gather and convert what the terms need, in eager mode.
            cost_inputs = self.pair_builder.cost_inputs(predictions, targets)
            # The weighted sum of all terms, possibly compiled.
            costs = self.cost(*cost_inputs)

        # The costs of impossible objects are not finite either, so the check below finds them.
        if targets.invalid is not None:
            costs.masked_fill_(targets.invalid[:, None, :, None], float("nan"))

        # The one copy to the host. The check comes after it, because a check on the device would
        # need a copy of its own.
        host_costs: np.ndarray = to_host(costs).numpy()
        require_finite(host_costs, supervised.names)
        return host_costs

    def costs_in_blocks(self, predictions: Predictions, targets: TargetBatch) -> Tensor:
        """Return the costs [L,B,K,T,N], computed for some layers and groups of one image at a time.

        Terms have several intermediate results of the size of the costs. With many objects these
        do not fit into the cache of a CPU, and allocating them takes longer than the arithmetic.
        The class costs of an image are computed once for every class that its objects have. In the
        padding of the targets the costs are zero.
        """
        num_layers, num_images, num_groups, num_queries, _ = predictions.logits.shape
        num_objects = targets.labels.shape[1]
        costs = torch.zeros(num_layers, num_images, num_groups, num_objects, num_queries)
        for image, count in enumerate(targets.counts):
            if count == 0:
                continue
            objects = targets.image(image)
            groups_at_once = max(1, MAX_PAIRS_AT_ONCE // (count * num_queries))
            layers_at_once = max(1, groups_at_once // num_groups)
            first_layers = range(0, num_layers, layers_at_once)
            first_groups = range(0, num_groups, groups_at_once)
            for layer, group in product(first_layers, first_groups):
                block = (
                    slice(layer, layer + layers_at_once),
                    slice(image, image + 1),
                    slice(group, group + groups_at_once),
                )
                part = Predictions(predictions.logits[block], predictions.boxes[block])
                cost_inputs = self.pair_builder.cost_inputs(part, objects)
                self.cost.add_to(costs[block][..., :count, :], *cost_inputs)
        return costs


class MatchingCost(nn.Module):
    """Weighted sum of the costs of the terms, [L,B,K,T,N]: every query with every object.

    It takes `PairBuilder.cost_inputs`. torch.compile can make one kernel of it.
    """

    def __init__(self, terms: Sequence[Term], pair_builder: PairBuilder) -> None:
        super().__init__()
        self.terms = terms
        self.pair_builder = pair_builder

    def forward(self, *cost_inputs: Tensor | None) -> Tensor:
        pairs = self.pair_builder.all_pairs(*cost_inputs)
        first, *others = self.terms

        # A new tensor of the first term, so that the tensors of `pairs` stay as they are.
        total = first.cost_weight * first.cost(pairs)

        # The other terms are added in place: it is the largest tensor of the criterion.
        for term in others:
            total.add_(term.cost(pairs), alpha=term.cost_weight)
        return total

    def add_to(self, costs: Tensor, *cost_inputs: Tensor | None) -> None:
        """Add the weighted costs of the terms to ``costs`` [L,B,K,T,N]."""
        pairs = self.pair_builder.all_pairs(*cost_inputs)
        for term in self.terms:
            costs.add_(term.cost(pairs), alpha=term.cost_weight)


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
