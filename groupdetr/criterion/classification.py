"""Classes: the sigmoid focal loss (Lin et al. 2017), as cost and as loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.structures import Assignment, Objects, Predictions


@dataclass(frozen=True)
class Focal:
    """Every query is told the class of its object, and every other class of every query that it is not there."""

    cost_weight: float
    loss_weight: float
    alpha: float = 0.25
    gamma: float = 2.0
    name: str = "focal"

    def cost(self, predictions: Predictions, objects: Objects) -> Tensor:
        """What calling the query an object of this class would change (Deformable DETR's matching cost)."""
        stages, _, groups, queries, _ = predictions.logits.shape
        wanted = objects.labels[None, :, None, None].expand(stages, -1, groups, queries, -1)
        score = predictions.logits.gather(-1, wanted).float().sigmoid().mT
        present = self.alpha * (1 - score) ** self.gamma * -(score + 1e-8).log()
        absent = (1 - self.alpha) * score**self.gamma * -(1 - score + 1e-8).log()
        return present - absent

    def loss(self, predictions: Predictions, objects: Objects, assignment: Assignment) -> Tensor:
        """All classes of all queries are absent, corrected where an object is matched."""
        everywhere = AbsentEverywhere.apply(predictions.logits, self.alpha, self.gamma)
        label = assignment.gather_objects(objects.labels)
        logit = assignment.gather(predictions.logits).gather(-1, label.unsqueeze(-1)).squeeze(-1).float()
        score = logit.sigmoid()
        present = self.alpha * (1 - score) ** self.gamma * F.softplus(-logit)
        absent = (1 - self.alpha) * score**self.gamma * F.softplus(logit)
        return everywhere + (present - absent).sum(-1)


class AbsentEverywhere(torch.autograd.Function):
    """The focal loss of logits [L,...] if nothing were there, summed to [L].

    The gradient is made in the forward pass, so one tensor of the logits' size is kept instead of several.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, alpha: float, gamma: float) -> Tensor:
        x = logits.float()
        score, penalty = x.sigmoid(), F.softplus(x)
        weight = (1 - alpha) * score**gamma
        ctx.save_for_backward((weight * (gamma * (1 - score) * penalty + score)).to(logits.dtype))
        return (weight * penalty).flatten(1).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0].to(slope.dtype).view(-1, *[1] * (slope.ndim - 1)), None, None
