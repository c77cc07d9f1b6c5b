"""Classes, as cost and as loss: the sigmoid focal loss (Lin et al. 2017), and DETR's softmax with a class for none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.masks import AllMasks, MatchedMasks
from groupdetr.criterion.pairs import AllPairs, MatchedPairs


@dataclass(frozen=True)
class Focal:
    """Every query is told the class of its object, and every other class of every query that it is not there.

    ``eps`` keeps the cost's logarithms finite: 1e-8 in Deformable DETR's code, 1e-12 in mmdet's.
    """

    cost_weight: float
    loss_weight: float
    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-8
    name: str = "focal"

    def cost(self, pairs: AllPairs) -> Tensor:
        """What calling the query an object of this class would change (Deformable DETR's matching cost)."""
        score = pairs.logits.sigmoid()
        doubt = 1 - score
        absent = (doubt + self.eps).log_().mul_(score**self.gamma).mul_(1 - self.alpha)
        return absent.addcmul_((score + self.eps).log_(), doubt**self.gamma, value=-self.alpha)

    def loss(self, pairs: MatchedPairs) -> Tensor:
        return FocalLoss.apply(pairs.logits, pairs.classes, self.alpha, self.gamma)


class FocalLoss(torch.autograd.Function):
    """Of logits [L,...], summed to [L]: absent everywhere, but for the entries ``present``, none of them twice.

    The gradient is made in the forward pass, so one tensor of the logits' size is kept instead of several.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, present: tuple[Tensor, ...], alpha: float, gamma: float
    ) -> Tensor:
        x = logits.float()
        absent, mirrored = Absent(x, 1 - alpha, gamma), Absent(-x[present], alpha, gamma)
        absent.loss[present] = mirrored.loss
        loss = absent.loss.sum(tuple(range(1, x.ndim)))
        slope = absent.slope()
        slope[present] = -mirrored.slope()
        ctx.save_for_backward(slope.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0].to(slope.dtype).view(-1, *[1] * (slope.ndim - 1)), None, None, None


class Absent:
    """What is lost where nothing is there: share * p^gamma * -log(1 - p), where p is the sigmoid of x.

    Its mirror image is what is lost where something is. In place where it can be: fresh memory is dearer than what is
    computed in it.
    """

    def __init__(self, x: Tensor, share: float, gamma: float) -> None:
        self.score, self.gamma = x.sigmoid(), gamma
        self.weight = (self.score**gamma).mul_(share)
        self.loss = F.softplus(x).mul_(self.weight)

    def slope(self) -> Tensor:
        """The derivative by x, in the place of the loss."""
        return self.loss.mul_(self.gamma).lerp_(self.weight, self.score)


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of all queries, in which those without an object count ``nothing`` (DETR, Carion et al. 2020).

    A mean, by the weights of all queries of a group, and not a sum over objects: K groups have K times the weights.
    """

    cost_weight: float
    loss_weight: float
    nothing: float = 0.1
    name: str = "softmax"

    def cost(self, pairs: AllMasks) -> Tensor:
        return -pairs.scores

    def loss(self, pairs: MatchedMasks) -> Tensor:
        logits = pairs.logits.float().log_softmax(-1)
        summed = -self.nothing * logits[..., -1].sum((1, 2, 3))
        *where, _ = pairs.classes
        summed = summed + (
            self.nothing * logits[..., -1][tuple(where)] - logits[pairs.classes]
        ).sum(1)
        queries = logits.shape[1] * logits.shape[3]  # of all images
        return summed / (self.nothing * queries + (1 - self.nothing) * pairs.told) * pairs.objects
