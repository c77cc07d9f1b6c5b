"""What a detector may say, with gradients, and objects to compare it with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.groups import match_groups
from groupdetr.modeling.queries.denoising import known_pairs
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Denoising, Queries
from groupdetr.structures.targets import Target


def criterion() -> SetCriterion:
    return SetCriterion([Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)], match_groups)


def said(groups: int, queries: int) -> Predictions:
    axes = (2, groups, queries)
    boxes = torch.rand(*axes, 4) * 0.4 + 0.2
    return Predictions(torch.randn(*axes, 91).requires_grad_(), boxes.requires_grad_())


def outputs(
    groups: int, layers: int = 6, queries: int = 100, counts: Sequence[int] | None = None
) -> Outputs:
    """Of a plain detector; with ``counts`` also proposals, and two denoising copies of as many objects."""
    torch.manual_seed(0)
    proposals = denoising = None
    slots = 0
    if counts is not None:
        slots = 2 * max(counts)
        padding = torch.zeros(len(counts), 1, slots, dtype=torch.bool)
        denoising = Denoising(known_pairs(counts, 2, groups, max(counts)), padding, 2, groups)
        proposals = said(groups, queries)
    nothing = torch.zeros(2, groups, slots + queries, 4)
    asked = Queries(nothing, nothing, proposals=proposals, denoising=denoising)
    return Outputs([said(groups, slots + queries) for _ in range(layers)], asked)


def targets(*counts: int) -> list[Target]:
    return [Target(torch.randint(0, 91, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in counts]
