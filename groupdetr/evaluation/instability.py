"""Instability of the matching (DN-DETR; Fig. 5 of Group DETR): how many queries have another object than before.

V_n is the object that query n is matched to, -1 for none. IS^i = sum over n of 1[V_n^i != V_n^(i-1)] from one
evaluation to the next, on average over the same I pictures. An object that moves to another query counts twice, for
both: the most is twice the mean number of objects.

What is kept is V itself, [I,K,N]: an object of Table 7 (b) has several queries in a group, so a query for every object
would not do, and 500 pictures of 11 groups of 300 queries are 3 MB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from groupdetr.structures.assignment import Assignment


def objects_of_queries(assignment: Assignment, shape: tuple[int, ...]) -> np.ndarray:
    """V of the last stage, [B,K,N] int16 of that ``shape``."""
    image, group, query, target = (
        x[-1].cpu().numpy()
        for x in (assignment.image, assignment.group, assignment.query, assignment.target)
    )
    objects = np.full(shape, -1, np.int16)
    objects[image, group, query] = target
    return objects


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """V of several pictures [K,N_i] as [I,K,N]: those of a two-stage detector that are small have fewer queries."""
    most = max(v.shape[1] for v in pictures)
    return np.stack(
        [np.pad(v, ((0, 0), (0, most - v.shape[1])), constant_values=-1) for v in pictures]
    )


def instability(now: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """IS of every group, [K], from two V [I,K,N]; nan without a V before of the same pictures and queries."""
    if before is None or not comparable(now, before):
        return np.full(now.shape[1], np.nan)
    return (now != before).sum(axis=2).mean(axis=0)


def comparable(now: np.ndarray, before: np.ndarray) -> bool:
    """As many pictures, groups and queries, and as many matches in every picture."""
    return now.shape == before.shape and np.array_equal(
        *((v >= 0).sum(axis=(1, 2)) for v in (now, before))
    )
