"""The use of queries: wins, dead queries, and twins."""

from __future__ import annotations

import numpy as np

from groupdetr.analysis.query_use import query_use, twin_pairs

# Two groups of three queries. Query 0 of both groups has nearly the same reference point.
POINTS = np.array(
    [[[0.2, 0.2], [0.8, 0.2], [0.5, 0.5]], [[0.21, 0.2], [0.2, 0.8], [0.505, 0.9]]], np.float32
)
SCORES = np.array([[0.9, 0.05, 0.05], [0.8, 0.3, 0.05]], np.float32)


def test_wins_dead_queries_and_twins_over_two_images() -> None:
    """In the first image, queries 0 of both groups win object 0; in the second, they differ."""
    first = np.array([[0, -1, -1], [0, -1, -1]], np.int16)
    second = np.array([[1, 0, -1], [0, -1, 1]], np.int16)
    use = query_use([first, second], [SCORES, SCORES], [POINTS, POINTS])
    assert use.wins.tolist() == [[2, 1, 0], [2, 0, 1]]
    assert use.never_match.tolist() == [[False, False, True], [False, True, False]]
    assert use.never_score.tolist() == [[False, True, True], [False, False, True]]
    assert use.dead.tolist() == [[False, False, True], [False, False, False]]
    (twins,) = use.twins
    assert (twins.group, twins.query, twins.other_group, twins.other_query) == (0, 0, 1, 0)
    assert (twins.wins, twins.shared_wins) == (2, 1)
    assert use.with_twin.tolist() == [[True, False, False], [True, False, False]]


def test_neighbours_in_one_group_are_no_twins() -> None:
    points = np.array([[[0.5, 0.5], [0.5, 0.5]], [[0.1, 0.1], [0.9, 0.9]]])
    assert twin_pairs(points) == []


def test_reference_points_that_come_from_the_image_have_no_twins() -> None:
    """And a small image of a two-stage detector, which has fewer queries, is counted."""
    matched = np.array([[0, -1, -1], [0, -1, -1]], np.int16)
    small = [x[:, :2] for x in (matched, SCORES, POINTS)]
    use = query_use([matched, small[0]], [SCORES, small[1]], [POINTS, small[2]])
    assert not use.is_fixed
    assert use.num_twins == 0
    assert use.wins.tolist() == [[2, 0, 0], [2, 0, 0]]
    np.testing.assert_allclose(use.points, POINTS, rtol=1e-6)
