"""Terms of classification: focal loss, IoU-aware cross-entropy, softmax cross-entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.masks import AllMaskPairs, MatchedMaskPairs
from groupdetr.criterion.pairs import (
    AllBoxPairs,
    AllSoftmaxBoxPairs,
    MatchedBoxPairs,
    MatchedSoftmaxBoxPairs,
)
from groupdetr.criterion.term import Term
from groupdetr.errors import UsageError
from groupdetr.groups import loss_normaliser
from groupdetr.ops.boxes import box_iou
from groupdetr.structures.tensor_dataclass import require

MIN_QUALITY = 0.01  # the lowest score that a matched query learns (LW-DETR)

# Logits whose losses are computed at once: on a CPU, and on other devices. The intermediate results
# of the former have one megabyte each, those of the latter 64 MiB. A GPU waits for every operation
# to be launched, so there it is all logits of COCO's classes.
MAX_LOGITS_AT_ONCE = 1 << 18
MAX_LOGITS_ON_DEVICE = 1 << 24

# The pairs that `Softmax` can measure: of boxes or of masks.
AllSoftmaxPairs = AllMaskPairs | AllSoftmaxBoxPairs
MatchedSoftmaxPairs = MatchedMaskPairs | MatchedSoftmaxBoxPairs


@dataclass(frozen=True)
class Focal(Term[AllBoxPairs, MatchedBoxPairs]):
    """Sigmoid focal loss (Lin et al. 2017).

    The class of the object of a matched query is positive. Every other (query, class) is negative.

    >>> focal = groupdetr.Focal(cost_weight=2, loss_weight=2)  # the weights of Deformable DETR
    """

    name: ClassVar[str] = "focal"

    alpha: float = 0.25  # the weight of positives; that of negatives is 1 - alpha
    gamma: float = 2.0  # the larger, the less easy examples count
    # Keeps the logarithms of the cost finite: 1e-8 in Deformable DETR's code, 1e-12 in mmdet's
    eps: float = 1e-8

    def cost(self, pairs: AllBoxPairs) -> Tensor:
        """Return the focal loss of the class as a positive minus that as a negative.

        This is the matching cost of Deformable DETR.
        """
        score = pairs.class_logits.sigmoid()
        complement = 1 - score
        # Minus the loss as a negative: (1 - alpha) * p^gamma * log(1 - p). In place, because
        # allocating memory takes longer than the arithmetic.
        cost = (complement + self.eps).log_().mul_(score**self.gamma).mul_(1 - self.alpha)
        # Plus the loss as a positive: -alpha * (1 - p)^gamma * log(p).
        modulation = complement.pow_(self.gamma)
        log_score = score.add_(self.eps).log_()
        return pairs.of_objects(cost.addcmul_(log_score, modulation, value=-self.alpha))

    def loss(self, pairs: MatchedBoxPairs) -> Tensor:
        return FocalLoss.apply(pairs.logits, pairs.target_classes, self.alpha, self.gamma)


class ClassLoss(torch.autograd.Function):
    """Base of the losses of all logits [L,...], summed to [L].

    ``forward`` computes the gradient together with the loss. So one tensor of the size of the
    logits is saved for backward instead of several. It is a constant there, so a second derivative
    would be wrong: `UsageError` for a backward pass with ``create_graph=True``.
    """

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        (gradient,) = ctx.saved_tensors
        grad = grads[0].to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1))
        # A second tensor of this size is needed only if the saved one may be used again.
        scaled = gradient * grad if _graph_is_kept() else gradient.mul_(grad)
        return scaled, None, None, None


def _refuse_second_derivatives() -> None:
    """Raise `UsageError` in a backward pass that creates a graph of its own.

    `once_differentiable` of torch would not: it only refuses where the incoming gradient itself
    has a graph, and the gradient of a sum of losses has none.
    """
    if not torch.compiler.is_compiling() and torch.is_grad_enabled():
        raise UsageError(
            "the loss of the classes has no second derivative, and this backward pass has "
            "create_graph=True",
            remedy="leave out create_graph=True, or write the loss as a groupdetr.Term of your own",
        )


def _graph_is_kept() -> bool:
    """Return False if the graph of the present backward pass is not used again."""
    if torch.compiler.is_compiling():
        return True  # The compiler decides by itself what is computed in place.
    is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return is_kept is None or is_kept()


class FocalLoss(ClassLoss):
    """Sigmoid focal loss of logits [L,...], summed to [L].

    The entries ``positives``, an index [L,M] without duplicates, are positive; all others are
    negative.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, positives: tuple[Tensor, ...], alpha: float, gamma: float
    ) -> Tensor:
        # The loss of a positive at x is that of a negative at -x, with alpha for 1 - alpha.
        positive = NegativeFocal(-logits[positives].float(), alpha, gamma)
        loss, gradient = sum_losses(logits, positives, positive.loss, 1 - alpha, gamma)
        gradient[positives] = -positive.gradient().to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return loss


def sum_losses(
    logits: Tensor,
    positives: tuple[Tensor, ...],
    positive_loss: Tensor,
    weight: float,
    gamma: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss of logits [L,...,N,C], summed to [L], and its gradient with respect to them.

    The positives have the losses ``positive_loss`` [L,M], and all others that of `NegativeFocal`.
    The gradient of the positives is left to the caller.

    The intermediate results take several times the memory of the logits. Therefore they are
    computed for a part of the logits at a time, unless the compiler makes one kernel of them.
    """
    max_logits = MAX_LOGITS_AT_ONCE if logits.device.type == "cpu" else MAX_LOGITS_ON_DEVICE
    if torch.compiler.is_compiling() or logits.numel() <= max_logits:
        negative = NegativeFocal(logits.float(), weight, gamma)
        negative.loss[positives] = positive_loss
        loss = negative.loss.sum(tuple(range(1, logits.ndim)))
        # `gradient` overwrites the losses, so it comes after their sum.
        return loss, negative.gradient().to(logits.dtype)

    # A part has some of the logits of one layer, which are one after the other in memory. The sums
    # of the parts have the positives as negatives, too.
    loss_as_negatives = NegativeFocal(logits[positives].float(), weight, gamma).loss
    loss = (positive_loss - loss_as_negatives).sum(-1)
    gradient = logits.new_empty(logits.shape)
    for layer, (logits_of_layer, gradient_of_layer) in enumerate(zip(logits, gradient)):
        parts = logits_of_layer.flatten().split(max_logits)
        for part, gradient_of_part in zip(parts, gradient_of_layer.flatten().split(max_logits)):
            negative = NegativeFocal(part.float(), weight, gamma)
            loss[layer] += negative.loss.sum()
            gradient_of_part.copy_(negative.gradient())
            del negative  # before the results of the next part are allocated
    return loss, gradient


class NegativeFocal:
    """Focal loss of negatives: weight * p^gamma * -log(1 - p), where p = sigmoid(x).

    Operations are in place where possible, because allocating memory takes longer than the
    arithmetic.
    """

    def __init__(self, x: Tensor, weight: float, gamma: float) -> None:
        self.score = x.sigmoid()
        self.gamma = gamma
        self.modulation = (self.score**gamma).mul_(weight)
        # softplus(x) = -log(1 - sigmoid(x))
        self.loss = F.softplus(x).mul_(self.modulation)

    def gradient(self) -> Tensor:
        """Return the derivative of the loss with respect to x, in the memory of the loss.

        With m = weight * p^gamma it is (1 - p) * gamma * loss + p * m.
        """
        return self.loss.mul_(self.gamma).lerp_(self.modulation, self.score)


@dataclass(frozen=True)
class IoUAwareBCE(Focal):
    """IoU-aware binary cross-entropy, IA-BCE (LW-DETR, Chen et al. 2024, arXiv 2406.03459).

    A matched query learns the score t = max(0.01, p^(1-e) * IoU^e) for the class of its object.
    Here p is its present score, IoU that of its predicted box with its object, and e is
    ``iou_exponent``; t has no gradient. Every other (query, class) has the negative loss
    -p^gamma * log(1 - p), in which p^gamma has a gradient. The matching cost is that of `Focal`.

    >>> iou_aware = groupdetr.IoUAwareBCE(cost_weight=2, loss_weight=1)  # the weights of LW-DETR
    """

    name: ClassVar[str] = "iou_aware_bce"
    location: ClassVar[str | None] = "box"

    iou_exponent: float = 0.75

    def loss(self, pairs: MatchedBoxPairs) -> Tensor:
        with torch.no_grad():
            iou = box_iou(pairs.pred, pairs.target)
            score = pairs.logits[pairs.target_classes].float().sigmoid()
            quality = score ** (1 - self.iou_exponent) * iou**self.iou_exponent
            quality = quality.clamp(min=MIN_QUALITY)
        return IoUAwareLoss.apply(pairs.logits, pairs.target_classes, quality, self.gamma)


class IoUAwareLoss(ClassLoss):
    """The loss of `IoUAwareBCE` of logits [L,...], summed to [L].

    The entries ``positives``, an index [L,M] without duplicates, learn the scores ``quality``.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, positives: tuple[Tensor, ...], quality: Tensor, gamma: float
    ) -> Tensor:
        matched = logits[positives].float()
        # Cross-entropy with the target t: -t * log(p) - (1 - t) * log(1 - p)
        positive_loss = F.softplus(matched) - quality * matched
        loss, gradient = sum_losses(logits, positives, positive_loss, 1.0, gamma)
        gradient[positives] = (matched.sigmoid() - quality).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return loss


@dataclass(frozen=True)
class Softmax(Term[AllSoftmaxPairs, MatchedSoftmaxPairs]):
    """Cross-entropy over the classes and "no object", the last one (DETR, Carion et al. 2020).

    Matched queries have the weight 1. The loss is a weighted mean over all queries of a group and
    not a sum over objects. With K groups, the sum of the weights is K times as large.

    >>> softmax = groupdetr.Softmax(cost_weight=1, loss_weight=1)  # the weights of DETR
    """

    name: ClassVar[str] = "softmax"

    no_object: float = 0.1  # the weight of queries without an object, above 0

    def __post_init__(self) -> None:
        # With 0, the weighted mean of a batch without objects would be undefined.
        require(
            0 < self.no_object < math.inf,
            f"no_object must be a finite number above 0, not {self.no_object}",
        )

    def cost(self, pairs: AllSoftmaxPairs) -> Tensor:
        # DETR's cost is the probability of the class, not its logarithm.
        return -pairs.scores

    def loss(self, pairs: MatchedSoftmaxPairs) -> Tensor:
        log_probs = pairs.logits.float().log_softmax(-1)
        no_object = log_probs[..., -1]
        *matched_queries, _ = pairs.target_classes

        # First all queries count as "no object". Then the matched ones are corrected.
        total = -self.no_object * no_object.sum((1, 2, 3))
        correction = self.no_object * no_object[tuple(matched_queries)]
        total = total + (correction - log_probs[pairs.target_classes]).sum(1)

        # The mean divides by the sum of the weights of all queries of one group, in all images of
        # the optimizer step. These images may be one of several parts of the step. All parts have
        # equally many queries, but not equally many matched ones, so those are averaged.
        objects = pairs.objects
        num_queries = log_probs.shape[1] * log_probs.shape[3]
        num_matched = objects.matched / objects.parts
        sum_of_weights = self.no_object * num_queries + (1 - self.no_object) * num_matched

        # The criterion divides every term by the normaliser of K groups. Here it shall divide by K
        # alone, so this term is multiplied by the normaliser of one group.
        return total / sum_of_weights * loss_normaliser(1, objects.total, objects.parts)
