"""Boxes: L1 distance and generalized IoU, each as cost and as loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from groupdetr.criterion.term import facing
from groupdetr.ops.boxes import cxcywh_to_xyxy, generalized_iou
from groupdetr.structures import Assignment, Objects, Predictions


@dataclass(frozen=True)
class L1:
    """The sum of the distances of centre and size, in shares of the image."""

    cost_weight: float
    loss_weight: float
    name: str = "l1"

    def cost(self, predictions: Predictions, objects: Objects) -> Tensor:
        queries, wanted = facing(predictions.boxes, objects.boxes)
        pairs = zip(queries.unbind(-1), wanted.unbind(-1))
        return sum((a - b).abs() for a, b in pairs)  # type: ignore[return-value]

    def loss(self, predictions: Predictions, objects: Objects, assignment: Assignment) -> Tensor:
        said, wanted = assignment.gather(predictions.boxes).float(), assignment.gather_objects(objects.boxes)
        return (said - wanted).abs().sum((1, 2))


@dataclass(frozen=True)
class GIoU:
    """One minus the generalized IoU; as a cost without the one, which changes no assignment.

    ``eps`` is that of `generalized_iou`: 0 in Conditional DETR's code, 1e-6 in DAB-DETR's.
    """

    cost_weight: float
    loss_weight: float
    eps: float = 0.0
    name: str = "giou"

    def cost(self, predictions: Predictions, objects: Objects) -> Tensor:
        said, wanted = (cxcywh_to_xyxy(x) for x in facing(predictions.boxes, objects.boxes))
        return -generalized_iou(said, wanted, self.eps)

    def loss(self, predictions: Predictions, objects: Objects, assignment: Assignment) -> Tensor:
        said, wanted = assignment.gather(predictions.boxes).float(), assignment.gather_objects(objects.boxes)
        return (1 - generalized_iou(cxcywh_to_xyxy(said), cxcywh_to_xyxy(wanted), self.eps)).sum(1)
