"""Weighted boxes fusion of the detections of several groups (`--vote`).

Solovyev, Wang and Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object
detection models" (2021, arXiv 1910.13302). Here the models are the groups of one detector. A group
detects each object once, because its queries are matched one-to-one. So, unlike in the paper, a
cluster has at most one box of each group. Neighbours that overlap are therefore not merged, and
groups with identical detections are fused to these detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.structures.detections import Detections

MIN_IOU = 0.55  # of a box with the fused box of its cluster, as in the paper


@dataclass(frozen=True)
class FusedDetections:
    """The F fused detections of one image, by decreasing score, and their boxes in K groups."""

    detections: Detections  # [F]
    scores: NDArray[np.float64]  # [F,K] of the box of each group; nan where a group has none
    boxes: NDArray[np.float64]  # [F,K,4] x0, y0, x1, y1 in pixels; nan likewise


def fuse_groups(
    groups: Sequence[Detections], max_detections: int, min_iou: float = MIN_IOU
) -> FusedDetections:
    """Return the fused detections of K ``groups``, each with all of its detections in an image.

    The boxes of all groups are visited by decreasing score. A box joins the cluster of its class
    with which it has the largest IoU, of at least ``min_iou``, among those that have no box of its
    group yet. Otherwise it begins a cluster. The fused box of a cluster is the mean of its boxes
    weighted by their scores. Its score is the sum of their scores divided by K, so groups that do
    not detect an object count as a score of zero. Of the clusters, the ``max_detections`` with the
    highest scores are returned. Masks are not fused: they are left out.
    """
    num_groups = len(groups)
    group_of, scores, labels, boxes = _concatenate(groups)
    clusters: list[_Cluster] = []
    clusters_of_class: dict[int, list[_Cluster]] = {}
    # Plain numbers: for a few boxes at a time, Python is many times as fast as NumPy.
    all_groups, all_scores = group_of.tolist(), scores.tolist()
    all_labels, all_boxes = labels.tolist(), boxes.tolist()

    for index in np.argsort(-scores, kind="stable").tolist():
        group, label, box = all_groups[index], all_labels[index], all_boxes[index]
        of_class = clusters_of_class.setdefault(label, [])
        best, best_iou = None, 0.0
        for cluster in of_class:
            if group in cluster.groups:
                continue
            iou = cluster.iou(box)
            if iou >= min_iou and (best is None or iou > best_iou):
                best, best_iou = cluster, iou
        if best is None:
            best = _Cluster(label)
            clusters.append(best)
            of_class.append(best)
        best.add(index, group, all_scores[index], box)

    fused_scores = np.array([cluster.score_sum / num_groups for cluster in clusters])
    order = np.argsort(-fused_scores, kind="stable")[:max_detections]
    group_scores = np.full((len(order), num_groups), np.nan)
    group_boxes = np.full((len(order), num_groups, 4), np.nan)
    for row, number in enumerate(order.tolist()):
        members = clusters[number].members
        group_scores[row, group_of[members]] = scores[members]
        group_boxes[row, group_of[members]] = boxes[members]
    chosen = [clusters[number] for number in order.tolist()]
    detections = Detections(
        scores=torch.from_numpy(fused_scores[order]).float(),
        labels=torch.tensor([cluster.label for cluster in chosen], dtype=torch.int64),
        boxes=torch.tensor([cluster.box for cluster in chosen]).reshape(-1, 4),
    )
    return FusedDetections(detections, group_scores, group_boxes)


class _Cluster:
    """Boxes of one class, at most one of each group, and their mean weighted by their scores."""

    def __init__(self, label: int) -> None:
        self.label = label
        self.members: list[int] = []  # indices of the boxes
        self.groups: set[int] = set()
        self.score_sum = 0.0
        self.box: list[float] = []  # x0, y0, x1, y1
        self.area = 0.0
        self._box_sum = [0.0] * 4
        self._weighted_sum = [0.0] * 4

    def add(self, index: int, group: int, score: float, box: list[float]) -> None:
        self.members.append(index)
        self.groups.add(group)
        self.score_sum += score
        self._box_sum = [x + y for x, y in zip(self._box_sum, box)]
        self._weighted_sum = [x + score * y for x, y in zip(self._weighted_sum, box)]
        if self.score_sum > 0:
            self.box = [x / self.score_sum for x in self._weighted_sum]
        else:  # the plain mean, if all scores are zero
            self.box = [x / len(self.members) for x in self._box_sum]
        self.area = _area(self.box)

    def iou(self, box: list[float]) -> float:
        """Return the IoU of the mean box with a box; 0 for two boxes without area."""
        x0, y0, x1, y1 = self.box
        width = min(x1, box[2]) - max(x0, box[0])
        height = min(y1, box[3]) - max(y0, box[1])
        if width <= 0 or height <= 0:
            return 0.0
        intersection = width * height
        return intersection / (self.area + _area(box) - intersection)


def _area(box: list[float]) -> float:
    x0, y0, x1, y1 = box
    return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)


def _concatenate(
    groups: Sequence[Detections],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return group, score, label and box of all detections of all groups."""
    group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    scores = torch.cat([group.scores for group in groups]).double().numpy()
    labels = torch.cat([group.labels for group in groups]).numpy()
    boxes = torch.cat([group.boxes for group in groups]).double().numpy()
    return group_of, scores, labels, boxes
