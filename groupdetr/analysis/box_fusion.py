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

from groupdetr.analysis.paired_iou import paired_iou
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
    clusters: list[list[int]] = []  # the indices of the boxes in each cluster
    fused = np.zeros((len(scores), 4))  # of each cluster
    cluster_labels = np.full(len(scores), -1)
    has_group = np.zeros((len(scores), num_groups), dtype=bool)

    for index in np.argsort(-scores, kind="stable").tolist():
        number = len(clusters)
        can_join = (cluster_labels[:number] == labels[index]) & ~has_group[:number, group_of[index]]
        candidates = np.flatnonzero(can_join)
        ious = paired_iou(fused[candidates], boxes[index])
        if len(candidates) and ious.max() >= min_iou:
            cluster = int(candidates[ious.argmax()])
            clusters[cluster].append(index)
            members = clusters[cluster]
            fused[cluster] = _weighted_mean(boxes[members], scores[members])
        else:
            cluster = number
            clusters.append([index])
            fused[cluster] = boxes[index]
            cluster_labels[cluster] = labels[index]
        has_group[cluster, group_of[index]] = True

    fused_scores = np.array([scores[members].sum() / num_groups for members in clusters])
    best = np.argsort(-fused_scores, kind="stable")[:max_detections]
    group_scores = np.full((len(best), num_groups), np.nan)
    group_boxes = np.full((len(best), num_groups, 4), np.nan)
    for row, cluster in enumerate(best.tolist()):
        members = clusters[cluster]
        group_scores[row, group_of[members]] = scores[members]
        group_boxes[row, group_of[members]] = boxes[members]
    detections = Detections(
        scores=torch.from_numpy(fused_scores[best]).float(),
        labels=torch.from_numpy(cluster_labels[best].astype(np.int64)),
        boxes=torch.from_numpy(fused[best]).float(),
    )
    return FusedDetections(detections, group_scores, group_boxes)


def _concatenate(
    groups: Sequence[Detections],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Return group, score, label and box of all detections of all groups."""
    group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    scores = torch.cat([group.scores for group in groups]).double().numpy()
    labels = torch.cat([group.labels for group in groups]).numpy()
    boxes = torch.cat([group.boxes for group in groups]).double().numpy()
    return group_of, scores, labels, boxes


def _weighted_mean(boxes: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean box, weighted by the scores; the plain mean if all scores are zero."""
    weights = scores if scores.sum() > 0 else np.ones_like(scores)
    mean: NDArray[np.float64] = np.average(boxes, axis=0, weights=weights)
    return mean
