"""Random outputs of a detector, with gradients, and random targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.groups import match_groups
from groupdetr.modeling.queries.denoising import denoising_assignment
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Denoising, Queries
from groupdetr.structures.targets import Target


def criterion() -> SetCriterion:
    return SetCriterion([Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)], match_groups)


def predictions(groups: int, queries: int) -> Predictions:
    """Predictions for two images, 91 classes."""
    axes = (2, groups, queries)
    boxes = torch.rand(*axes, 4) * 0.4 + 0.2
    return Predictions(torch.randn(*axes, 91).requires_grad_(), boxes.requires_grad_())


def outputs(
    groups: int, layers: int = 6, queries: int = 100, counts: Sequence[int] | None = None
) -> Outputs:
    """Outputs of a plain detector.

    With ``counts``, the objects of each image, there are also proposals and two denoising copies of
    every object.
    """
    torch.manual_seed(0)
    proposals = denoising = None
    num_denoising = 0
    if counts is not None:
        num_denoising = 2 * max(counts)
        padding = torch.zeros(len(counts), 1, num_denoising, dtype=torch.bool)
        assignment = denoising_assignment(counts, 2, groups, max(counts))
        denoising = Denoising(assignment, padding, 2, groups)
        proposals = predictions(groups, queries)
    zeros = torch.zeros(2, groups, num_denoising + queries, 4)
    queries_of_layers = Queries(zeros, zeros, proposals=proposals, denoising=denoising)
    predicted = [predictions(groups, num_denoising + queries) for _ in range(layers)]
    return Outputs(predicted, queries_of_layers)


def targets(*counts: int) -> list[Target]:
    return [Target(torch.randint(0, 91, (n,)), torch.rand(n, 4) * 0.4 + 0.2) for n in counts]
