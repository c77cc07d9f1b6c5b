"""Pairs of queries and objects that have both a box and a mask, as in RF-DETR-Seg."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from groupdetr.criterion.masks import MaskPairBuilder, PointCounts
from groupdetr.criterion.pairs import (
    AllBoxPairs,
    MatchedBoxPairs,
    ObjectTotals,
    gather_all_pairs,
    gather_matched_pairs,
)
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import TargetBatch
from groupdetr.structures.tensor_dataclass import require_count


@dataclass
class AllBoxAndMaskPairs(AllBoxPairs):
    """Every query with every object of its image: boxes, and measures of masks [L,B,K,T,N]."""

    cross_entropy: Tensor
    dice: Tensor


@dataclass
class MatchedBoxAndMaskPairs(MatchedBoxPairs):
    """Every matched query with its object: boxes, and measures of masks [L], summed over pairs."""

    cross_entropy: Tensor
    dice: Tensor


@dataclass(frozen=True)
class BoxesAndPointSampledMasks(MaskPairBuilder[AllBoxAndMaskPairs, MatchedBoxAndMaskPairs]):
    """Pairs of boxes and masks. Masks are measured at points, as in RF-DETR (rfdetr 1.11.2).

    The number of points grows with the mask features: there is one point for every
    ``pixels_per_point`` of their pixels. A loss has at least as many points as the features have
    rows. Annotated masks are read at the nearest pixel, and predicted masks continue at the border
    of the image.

    >>> terms = [
    ...     groupdetr.Focal(2, 2),
    ...     groupdetr.L1(5, 5),
    ...     groupdetr.GIoU(2, 2),
    ...     groupdetr.PointCrossEntropy(5, 5),
    ...     groupdetr.Dice(5, 5),
    ... ]
    >>> pairs = groupdetr.BoxesAndPointSampledMasks()
    >>> criterion = groupdetr.SetCriterion(terms, pair_builder=pairs)
    """

    locations: ClassVar[tuple[str, ...]] = ("box", "mask")
    padding_mode: ClassVar[str] = "border"

    pixels_per_point: int = 16  # pixels of the mask features for one point

    def __post_init__(self) -> None:
        require_count("pixels_per_point", self.pixels_per_point)

    def point_counts(self, height: int, width: int) -> PointCounts:
        # Features of fewer pixels than those of one point have one point.
        cost = max(1, height * width // self.pixels_per_point)
        return PointCounts(cost, max(height, cost))

    def sample_targets(self, masks: CroppedMasks, points: Tensor) -> Tensor:
        return masks.nearest_at(points)

    def cost_inputs(
        self, predictions: Predictions, targets: TargetBatch
    ) -> tuple[Tensor | None, ...]:
        """Return the fields of `AllBoxAndMaskPairs`."""
        with torch.autocast(predictions.logits.device.type, enabled=False):
            boxes = gather_all_pairs(predictions, targets)
            return *boxes, *self.mask_costs(predictions, targets)

    def all_pairs(self, *cost_inputs: Any) -> AllBoxAndMaskPairs:
        return AllBoxAndMaskPairs(*cost_inputs)

    def matched_pairs(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        objects: ObjectTotals,
    ) -> MatchedBoxAndMaskPairs:
        with torch.autocast(predictions.logits.device.type, enabled=False):
            boxes = gather_matched_pairs(predictions, targets, assignment)
            cross_entropy, dice = self.mask_losses(predictions, targets, assignment)
            return MatchedBoxAndMaskPairs(
                boxes.pred, boxes.target, boxes.logits, boxes.target_classes, cross_entropy, dice
            )
