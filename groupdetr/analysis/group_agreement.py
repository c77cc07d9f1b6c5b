"""How many groups detect each object, and how much their boxes and scores differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from groupdetr.analysis.paired_iou import paired_iou


@dataclass(frozen=True)
class ObjectAgreement:
    """The agreement of the K groups about T objects."""

    is_detected: NDArray[np.bool_]  # [T,K] True if the group detects the object
    # [T] 1 minus the mean IoU of all pairs of boxes of groups that detect the object; nan if fewer
    # than two detect it
    box_spread: NDArray[np.float64]
    score_spread: NDArray[np.float64]  # [T] standard deviation of their scores; nan likewise

    @property
    def num_groups(self) -> NDArray[np.int64]:
        """[T] the number of groups that detect the object."""
        return np.asarray(self.is_detected.sum(axis=1), dtype=np.int64)


def object_agreement(
    group_scores: ArrayLike, group_boxes: ArrayLike, min_score: float
) -> ObjectAgreement:
    """Return the agreement of the groups about T objects.

    ``group_scores`` [T,K] and ``group_boxes`` [T,K,4] are those of the detection of each group that
    belongs to the object, nan where a group has none. A group detects an object if this detection
    has a score of at least ``min_score``.
    """
    scores = np.asarray(group_scores, float)
    boxes = np.asarray(group_boxes, float)
    is_detected = scores >= min_score  # False for nan
    num_groups = scores.shape[1]
    first, second = np.triu_indices(num_groups, 1)
    is_pair = is_detected[:, first] & is_detected[:, second]  # [T, K*(K-1)/2]
    ious = paired_iou(boxes[:, first], boxes[:, second])
    num_pairs = is_pair.sum(axis=1)
    sums = np.where(is_pair, ious, 0.0).sum(axis=1)
    mean_iou = np.divide(sums, num_pairs, out=np.full(len(sums), np.nan), where=num_pairs > 0)

    counts = is_detected.sum(axis=1)
    at_least_two = counts >= 2
    divisor = np.where(at_least_two, counts, np.nan)[:, None]
    kept = np.where(is_detected, scores, 0.0)
    mean = kept.sum(axis=1, keepdims=True) / divisor
    squares = np.where(is_detected, (scores - mean) ** 2, 0.0).sum(axis=1) / divisor[:, 0]
    spread = np.where(at_least_two, np.sqrt(squares), np.nan)
    return ObjectAgreement(is_detected, 1 - mean_iou, spread)
