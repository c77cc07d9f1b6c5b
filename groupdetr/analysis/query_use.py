"""How often each query of each group wins an object, and which queries of two groups are twins.

A query wins an object if the matching of the training assigns the object to it in the last decoder
layer. In each group, every object of an image has exactly one query that wins it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from groupdetr.structures.json_object import JsonObject

MIN_SCORE = 0.1  # a query that never reaches it in any image never scores
TWIN_DISTANCE = 0.02  # of two reference points, as a fraction of the sides of the image
MAX_TWINS = 50  # pairs that are listed, the nearest ones


@dataclass(frozen=True)
class Twins:
    """Two queries of different groups with nearly the same reference point."""

    group: int
    query: int
    other_group: int
    other_query: int
    distance: float  # of the reference points, as a fraction of the sides of the image
    wins: int  # objects that the first query wins
    shared_wins: int  # of these, the objects that the other query wins, too


@dataclass(frozen=True)
class QueryUse:
    """The use of K groups of N queries over a number of images."""

    wins: NDArray[np.int64]  # [K,N] objects that each query wins
    best_scores: NDArray[np.float64]  # [K,N] the highest score of each query in any image
    points: NDArray[np.float64]  # [K,N,2] x, y in [0,1]: the mean over the images
    # True if the reference points are the same in every image. They are not if they come from the
    # image, as in DINO, or if queries have none.
    is_fixed: bool
    twins: list[Twins]  # the nearest ones first; none without fixed reference points
    num_twins: int  # of all pairs, also those that are not listed
    with_twin: NDArray[np.bool_]  # [K,N] True for queries that have a twin in another group

    @property
    def never_match(self) -> NDArray[np.bool_]:
        """[K,N] True for queries that never win an object."""
        return np.asarray(self.wins == 0)

    @property
    def never_score(self) -> NDArray[np.bool_]:
        """[K,N] True for queries whose score is below `MIN_SCORE` in every image."""
        return np.asarray(self.best_scores < MIN_SCORE)

    @property
    def dead(self) -> NDArray[np.bool_]:
        """[K,N] True for queries that neither win an object nor score."""
        return self.never_match & self.never_score

    def to_json(self) -> JsonObject:
        """Return plain data for a file: totals, one object for each query, and the twins."""
        queries = []
        num_groups, num_queries = self.wins.shape
        for group in range(num_groups):
            for query in range(num_queries):
                x, y = self.points[group, query].round(4).tolist()
                queries.append(
                    {
                        "group": group,
                        "query": query,
                        "x": x,
                        "y": y,
                        "wins": int(self.wins[group, query]),
                        "best_score": round(float(self.best_scores[group, query]), 4),
                    }
                )
        return {
            "fixed_points": self.is_fixed,
            "never_match": int(self.never_match.sum()),
            "never_score": int(self.never_score.sum()),
            "dead": int(self.dead.sum()),
            "twins": self.num_twins,
            "with_twin": int(self.with_twin.sum()),
            "nearest_twins": [
                {**vars(pair), "distance": round(pair.distance, 5)} for pair in self.twins
            ],
            "per_query": queries,
        }


def query_use(
    matched: Sequence[NDArray[np.int16]],
    scores: Sequence[NDArray[np.float32]],
    points: Sequence[NDArray[np.float32]],
) -> QueryUse:
    """Return the use of the queries over images, given the arrays of `ImageGroups` of each image.

    They are [K,N], [K,N] and [K,N,2]. In a two-stage detector, small images have fewer queries:
    those at the end are missing there. `ValueError` if there is no image.
    """
    if not matched:
        raise ValueError("without images, no query is used")
    num_groups = matched[0].shape[0]
    num_queries = max(of_image.shape[1] for of_image in matched)
    wins = np.zeros((num_groups, num_queries), dtype=np.int64)
    best_scores = np.zeros((num_groups, num_queries))
    sums = np.zeros((num_groups, num_queries, 2))
    counts = np.zeros(num_queries)
    is_fixed = True
    for matched_objects, of_scores, of_points in zip(matched, scores, points, strict=True):
        number = matched_objects.shape[1]
        wins[:, :number] += matched_objects >= 0
        best_scores[:, :number] = np.maximum(best_scores[:, :number], of_scores)
        sums[:, :number] += of_points
        counts[:number] += 1
        is_same = of_points.shape == points[0].shape and np.allclose(of_points, points[0])
        is_fixed = is_fixed and is_same
    mean_points = sums / counts[:, None]

    pairs = twin_pairs(mean_points) if is_fixed else []
    with_twin = np.zeros((num_groups, num_queries), dtype=bool)
    for a, b, _ in pairs:
        with_twin[a] = with_twin[b] = True
    twins = []
    for a, b, distance in pairs[:MAX_TWINS]:
        shared = sum(int(of[a] >= 0 and of[a] == of[b]) for of in matched)
        twins.append(Twins(*a, *b, distance, int(wins[a]), shared))
    return QueryUse(wins, best_scores, mean_points, is_fixed, twins, len(pairs), with_twin)


def twin_pairs(
    points: NDArray[np.float64], max_distance: float = TWIN_DISTANCE
) -> list[tuple[tuple[int, int], tuple[int, int], float]]:
    """Return all pairs of queries of different groups whose points [K,N,2] are close together.

    A pair is (group, query), (group, query) and the distance, at most ``max_distance``. The nearest
    pairs come first.
    """
    num_queries = points.shape[1]
    flat = points.reshape(-1, 2)
    pairs = []
    for i, j in cKDTree(flat).query_pairs(max_distance):
        a, b = divmod(min(i, j), num_queries), divmod(max(i, j), num_queries)
        if a[0] != b[0]:
            pairs.append((a, b, float(np.linalg.norm(flat[i] - flat[j]))))
    return sorted(pairs, key=lambda pair: (pair[2], pair[:2]))
