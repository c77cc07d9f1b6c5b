"""Instability of the matching (DN-DETR; Fig. 5 of Group DETR).

V_n is the object that query n is matched to, -1 for none. The instability is
IS^i = sum over n of 1[V_n^i != V_n^(i-1)] from one evaluation to the next, averaged over the same I
images. An object that moves from one query to another counts twice, once for each query. The
maximum is therefore twice the mean number of objects.

What is stored is V itself, [I,K,N]. Storing a query for each object would not suffice, because in
Table 7 (b) an object has several queries in a group. 100 images of 11 groups of 300 queries are
0.7 MB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from groupdetr.structures.assignment import Assignment


def objects_of_queries(assignment: Assignment, shape: tuple[int, ...]) -> np.ndarray:
    """Return V of the last layer, int16 of ``shape``, which is [B,K,N]."""
    image, group, query, target = assignment.pairs[:, -1].cpu().numpy()
    objects = np.full(shape, -1, np.int16)
    objects[image, group, query] = target
    return objects


def pad_and_stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Stack V of several images [K,N_i] to [I,K,N], with -1 in the padding.

    In a two-stage detector, small images have fewer queries.
    """
    num_queries = max(objects.shape[1] for objects in images)
    padded = []
    for objects in images:
        missing = num_queries - objects.shape[1]
        padded.append(np.pad(objects, ((0, 0), (0, missing)), constant_values=-1))
    return np.stack(padded)


def instability(current: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """Return IS of every group, [K], from V [I,K,N] of two evaluations.

    It is nan if there is no previous evaluation, or if that has other images or queries.
    """
    if previous is None or not comparable(current, previous):
        return np.full(current.shape[1], np.nan)
    return (current != previous).sum(axis=2).mean(axis=0)


def comparable(current: np.ndarray, previous: np.ndarray) -> bool:
    """True if two V have the same shape and the same number of matched queries in every image."""
    if current.shape != previous.shape:
        return False
    current_matches = (current >= 0).sum(axis=(1, 2))
    previous_matches = (previous >= 0).sum(axis=(1, 2))
    return np.array_equal(current_matches, previous_matches)
