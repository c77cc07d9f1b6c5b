"""Classes: the sigmoid focal loss (Lin et al. 2017), as cost and as loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.pairs import AllPairs, MatchedPairs


@dataclass(frozen=True)
class Focal:
    """Every query is told the class of its object, and every other class of every query that it is not there."""

    cost_weight: float
    loss_weight: float
    alpha: float = 0.25
    gamma: float = 2.0
    name: str = "focal"

    def cost(self, pairs: AllPairs) -> Tensor:
        """What calling the query an object of this class would change (Deformable DETR's matching cost)."""
        score = pairs.logits.sigmoid()
        doubt = 1 - score
        absent = (1 - self.alpha) * score**self.gamma * (doubt + 1e-8).log()
        present = doubt**self.gamma * (score + 1e-8).log()
        return torch.sub(absent, present, alpha=self.alpha)

    def loss(self, pairs: MatchedPairs) -> Tensor:
        return FocalLoss.apply(pairs.predictions.logits, pairs.classes, self.alpha, self.gamma)


class FocalLoss(torch.autograd.Function):
    """Of logits [L,...], summed to [L]: absent everywhere, but for the entries ``present``, none of them twice.

    The gradient is made in the forward pass, so one tensor of the logits' size is kept instead of several; and in
    place, for fresh memory is dearer than what is computed in it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, present: tuple[Tensor, ...], alpha: float, gamma: float) -> Tensor:
        x = logits.float()
        x = x.index_put(present, -x[present])  # present is absent, mirrored, and alpha instead of 1 - alpha
        score, loss = x.sigmoid(), F.softplus(x)
        slope = (score**gamma).mul_(1 - alpha)
        loss *= slope
        slope *= score
        slope.addcmul_(loss, 1 - score, value=gamma)
        loss[present] *= alpha / (1 - alpha)
        slope[present] *= -alpha / (1 - alpha)
        ctx.save_for_backward(slope.to(logits.dtype))
        return loss.sum(tuple(range(1, loss.ndim)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0].to(slope.dtype).view(-1, *[1] * (slope.ndim - 1)), None, None, None
