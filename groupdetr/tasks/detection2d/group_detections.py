"""What every group of queries detects at the place of each detection (`predict --show-groups`).

Only the primary group runs at inference. Fig. 3 of the paper shows the queries of all groups that
are matched to an object. Here there is no ground truth, so a detection of the primary group stands
for the object, and each group has at most one box for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject

MIN_IOU = 0.5  # a box of a group shows the same object from this IoU with the detection


@dataclass(frozen=True)
class GroupDetections:
    """The boxes of K groups for each of D detections."""

    scores: NDArray[np.float64]  # [D,K] in [0,1]; nan where a group does not detect the object
    boxes: NDArray[np.float64]  # [D,K,4] x0,y0,x1,y1 in pixels; nan likewise

    def to_json(self, index: int) -> list[JsonObject]:
        """Return the boxes of one detection: one object for each group that has one."""
        rows = []
        for group, score in enumerate(self.scores[index]):
            if np.isfinite(score):
                box = [round(float(coordinate), 3) for coordinate in self.boxes[index, group]]
                rows.append({"group": group, "score": round(float(score), 6), "box": box})
        return rows


def best_of_each_group(detections: Detections, groups: Sequence[Detections]) -> GroupDetections:
    """Return the box of each group for each of the ``detections``.

    ``groups`` are all detections of each group alone, whatever their score. Within a group, boxes
    are assigned one-to-one to detections of their class with an IoU of at least `MIN_IOU`, such
    that the sum of score times IoU is largest. So two neighbours never share a box.
    """
    from scipy.optimize import linear_sum_assignment  # only this option of predict needs scipy

    scores = np.full((len(detections), len(groups)), np.nan)
    boxes = np.full((len(detections), len(groups), 4), np.nan)
    for group, candidates in enumerate(groups):
        ious = detections.iou(candidates)  # [D,E]
        same_class = detections.labels.numpy()[:, None] == candidates.labels.numpy()[None]
        candidate_scores = candidates.scores.double().numpy()
        is_possible = same_class & (ious >= MIN_IOU)
        value = np.where(is_possible, ious * candidate_scores, 0.0)
        for row, column in zip(*linear_sum_assignment(value, maximize=True)):
            # Every row is assigned, also to a candidate of another object.
            if is_possible[row, column]:
                scores[row, group] = candidate_scores[column]
                boxes[row, group] = candidates.boxes[column].double().numpy()
    return GroupDetections(scores, boxes)
