"""Instability against its definition, read out query by query."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupdetr.evaluation.instability import instability, objects_of_queries
from groupdetr.groups import match_groups, match_naively


def matched(*pictures: list[int], groups: int = 1) -> np.ndarray:
    """V [I,K,N] of pictures [N], the same in all groups."""
    return np.array(pictures, np.int16)[:, None].repeat(groups, axis=1)


@st.composite
def two_evaluations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Costs [1,I,K,T,N] at two times, and the objects of each picture: there may be none, or more than queries."""
    counts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    groups, queries = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    first = random.random((1, len(counts), groups, max(counts), queries))
    second = first + draw(st.sampled_from([0.0, 0.2, 5.0])) * random.random(first.shape)
    return first, second, counts


@pytest.mark.parametrize("match", [match_groups, match_naively])
@given(two_evaluations())
def test_it_is_the_definition(match, drawn: tuple[np.ndarray, np.ndarray, list[int]]) -> None:  # type: ignore[no-untyped-def]
    *costs, counts = drawn
    _, pictures, groups, _, queries = costs[0].shape
    before, now = (match(cost, counts) for cost in costs)
    objects = [
        {
            (int(i), int(k), int(n)): int(t)
            for i, k, n, t in zip(a.image[0], a.group[0], a.query[0], a.target[0])
        }
        for a in (before, now)
    ]
    scores = instability(
        *(objects_of_queries(a, (pictures, groups, queries)) for a in (now, before))
    )
    for k in range(groups):
        places = [(i, k, n) for i in range(pictures) for n in range(queries)]
        changes = sum(objects[0].get(place, -1) != objects[1].get(place, -1) for place in places)
        assert scores[k] == pytest.approx(changes / pictures)


@pytest.mark.parametrize(
    ("before", "now", "score"),
    [
        ([0, 1, -1], [0, 1, -1], 0),
        ([0, 1, -1], [-1, 1, 0], 2),  # an object moves to a free query: both have changed
        ([0, 1, -1], [1, -1, 0], 3),  # one moves into the query that the other left
        ([0, 1, -1], [1, 0, -1], 2),  # two change places
        ([0, 1, 2], [3, 1, 2], 1),  # more objects than queries: another one is left out
        ([-1, -1, -1], [-1, -1, -1], 0),  # nothing there
    ],
)
def test_what_counts(before: list[int], now: list[int], score: int) -> None:
    assert instability(matched(now), matched(before)).tolist() == [score]


def test_it_is_a_mean_over_pictures_in_each_group() -> None:
    before, now = matched([0, -1], [-1, -1], groups=2), matched([0, -1], [-1, -1], groups=2)
    now[0, 1] = [-1, 0]
    assert instability(now, before).tolist() == [0, 1]


@pytest.mark.parametrize(
    "before",
    [
        None,
        matched([0, -1]),
        matched([0, -1, -1], [-1, -1, -1]),
        matched([0, -1], [-1, -1], groups=2),
    ],
    ids=["the first evaluation", "other pictures", "other queries", "other groups"],
)
def test_without_an_evaluation_to_compare_with_it_is_undefined(before: np.ndarray | None) -> None:
    now = matched([0, -1], [-1, -1])
    assert np.isnan(instability(now, before)).all()


def test_as_many_pictures_with_other_objects_are_other_pictures() -> None:
    assert np.isnan(instability(matched([0, -1], [0, -1]), matched([0, 1], [-1, -1]))).all()
