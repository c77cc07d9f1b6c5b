"""Pairs of queries and objects: all pairs for the matching costs, matched pairs for the losses.

What several terms need is computed once. It is float32 whatever the model computes in. The axis of
the coordinates comes first: the long axes are then contiguous, and a term that treats x and y alike
handles both in one operation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

from torch import Tensor

from groupdetr.criterion.term import AllPairsT, MatchedPairsT
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import TargetBatch


@dataclass
class ObjectTotals:
    """The numbers of objects of an optimizer step, which its losses are divided by."""

    total: Tensor  # scalar: the objects of all images of the step
    matched: Tensor  # scalar: those of them that have a query in every group
    parts: int  # micro-batches of all processes that the step is divided into


@dataclass
class BoxPairs:
    """Predicted and target boxes that broadcast with each other.

    A box is [4,...]: cx, cy, w, h, or [10,...]: an encoded 3D box.
    """

    pred: Tensor
    target: Tensor
    # |pred - target|, of boxes [4,...]: distances of centres and of sizes, relative to the image
    distances: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.distances = (self.pred - self.target).abs()


@dataclass
class AllBoxPairs(BoxPairs):
    """Every query with every object of its image: pred [4,L,B,K,1,N], target [4,1,B,1,T,1].

    Objects of the same class have the same class cost. So it can be computed for C different
    classes from ``class_logits``, and `of_objects` repeats it for the objects.
    """

    class_logits: Tensor  # [L,B,K,C,N] the query's logits of the objects' classes
    object_class: Tensor | None  # [T] index of each object's class in C; None: C is T

    def __post_init__(self) -> None:
        # In place, because costs need no gradient, and this is the largest tensor of the criterion.
        self.distances = (self.pred - self.target).abs_()

    @property
    def logits(self) -> Tensor:
        """[L,B,K,T,N] the query's logit of the object's class."""
        return self.of_objects(self.class_logits)

    def of_objects(self, x: Tensor) -> Tensor:
        """Return values of the objects' classes for the objects: [L,B,K,C,N] -> [L,B,K,T,N]."""
        return x if self.object_class is None else x.index_select(-2, self.object_class)


@dataclass
class MatchedBoxPairs(BoxPairs):
    """Every matched query with its object: pred and target [4,L,M]."""

    logits: Tensor  # [L,B,K,N,classes] of all queries
    target_classes: tuple[Tensor, ...]  # index of the logits of the objects' classes: five of [L,M]


@dataclass
class AllSoftmaxBoxPairs(AllBoxPairs):
    """Every query with every object of its image, for a softmax over the classes."""

    class_scores: Tensor  # [L,B,K,C,N] the query's probabilities of the objects' classes

    @property
    def scores(self) -> Tensor:
        """[L,B,K,T,N] the query's probability of the object's class."""
        return self.of_objects(self.class_scores)


@dataclass
class MatchedSoftmaxBoxPairs(MatchedBoxPairs):
    """Every matched query with its object, for a softmax over the classes and "no object"."""

    objects: ObjectTotals


class PairBuilder(ABC, Generic[AllPairsT, MatchedPairsT]):
    """Builds the pairs that terms measure, for one kind of predictions."""

    compiles: ClassVar[bool]  # True if torch.compile makes costs and losses faster
    # What the pairs are of, and what terms can measure: "box", "box3d", "mask", or two of these
    locations: ClassVar[tuple[str, ...]] = ("box",)
    numbers_of_a_box: ClassVar[int] = 4  # of the targets: 4, or 9 for 3D boxes

    @abstractmethod
    def cost_inputs(
        self, predictions: Predictions, targets: TargetBatch
    ) -> tuple[Tensor | None, ...]:
        """Return what `all_pairs` takes, with contiguous long axes.

        This part is not compiled. A compiled kernel that gathered the logits itself would read them
        object by object and wait for each read.

        If `compiles` is True, this is also called with some of the layers and groups of one image.
        """

    @abstractmethod
    def all_pairs(self, *cost_inputs: Any) -> AllPairsT:
        """Return every query with every object of its image, for the costs of the terms."""

    @abstractmethod
    def matched_pairs(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        objects: ObjectTotals,
    ) -> MatchedPairsT:
        """Return every matched query with its object, for the losses of the terms.

        ``objects`` are those of the optimizer step, for a term that is not a sum over objects.
        """


class BoxPairBuilder(PairBuilder[AllBoxPairs, MatchedBoxPairs]):
    """Pairs of boxes in the format in which predictions and targets have them."""

    compiles: ClassVar[bool] = True

    def cost_inputs(
        self, predictions: Predictions, targets: TargetBatch
    ) -> tuple[Tensor | None, ...]:
        return gather_all_pairs(predictions, targets)

    def all_pairs(self, *cost_inputs: Any) -> AllBoxPairs:
        return AllBoxPairs(*cost_inputs)

    def matched_pairs(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        objects: ObjectTotals,
    ) -> MatchedBoxPairs:
        return gather_matched_pairs(predictions, targets, assignment)


class SoftmaxBoxPairBuilder(BoxPairBuilder):
    """Pairs of boxes whose classes are predicted with a softmax, as in DETR.

    The last logit is "no object". See `groupdetr.criterion.classification.Softmax`.
    """

    def cost_inputs(
        self, predictions: Predictions, targets: TargetBatch
    ) -> tuple[Tensor | None, ...]:
        pred, target, class_logits, object_class = gather_all_pairs(predictions, targets)
        # The softmax of the gathered logits: exp(x) over the sum of exp of all classes.
        log_sum_exp = predictions.logits.float().logsumexp(-1)  # [L,B,K,N]
        class_scores = (class_logits - log_sum_exp.unsqueeze(-2)).exp()
        return pred, target, class_logits, object_class, class_scores

    def all_pairs(self, *cost_inputs: Any) -> AllSoftmaxBoxPairs:
        return AllSoftmaxBoxPairs(*cost_inputs)

    def matched_pairs(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        objects: ObjectTotals,
    ) -> MatchedSoftmaxBoxPairs:
        pairs = gather_matched_pairs(predictions, targets, assignment)
        return MatchedSoftmaxBoxPairs(
            pairs.pred, pairs.target, pairs.logits, pairs.target_classes, objects=objects
        )


def gather_all_pairs(
    predictions: Predictions, targets: TargetBatch
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return pred, target, class_logits and object_class of `AllBoxPairs`.

    They are computed from predictions [L,B,K,N,.] and targets [B,T,.].
    """
    layers, images, groups, queries, _ = predictions.logits.shape
    objects = targets.labels.shape[1]  # T, with padding
    # Every query's logit of every class [C] of the image, or of every object's class [B,T]: gather
    # along the class axis, then put the objects before the queries, as `groupdetr.ops.assignment`
    # expects them.
    labels = targets.labels if targets.classes is None else targets.classes
    labels = labels.view(1, images, 1, 1, -1).expand(layers, -1, groups, queries, -1)
    class_logits = predictions.logits.gather(-1, labels).float().mT.contiguous()
    pred = predictions.boxes.float().movedim(-1, 0).contiguous().unsqueeze(-2)
    target = targets.boxes.float().movedim(-1, 0)
    target = target.reshape(len(target), 1, images, 1, objects, 1)
    return pred, target, class_logits, targets.object_class


def gather_matched_pairs(
    predictions: Predictions, targets: TargetBatch, assignment: Assignment
) -> MatchedBoxPairs:
    """Return the pairs of an assignment [L,M]."""
    layer, image, group, query, target = assignment.columns
    # Contiguous, because for other memory layouts torch.compile makes graphs that fit one M only.
    pred_boxes = predictions.boxes[layer, image, group, query].float().movedim(-1, 0).contiguous()
    target_boxes = targets.boxes.movedim(-1, 0)[:, image, target].float()
    target_classes = (layer, image, group, query, targets.labels[image, target])
    return MatchedBoxPairs(pred_boxes, target_boxes, predictions.logits, target_classes)
