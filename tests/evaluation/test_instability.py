"""Matching instability against its definition, computed query by query."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupdetr.evaluation.instability import instability, objects_of_queries
from groupdetr.groups import Match, match_groups, match_naively
from groupdetr.structures.assignment import Assignment


def matched_objects(*images: list[int], groups: int = 1) -> np.ndarray:
    """V [I,K,N] of images [N], the same in all groups."""
    return np.array(images, np.int16)[:, None].repeat(groups, axis=1)


@st.composite
def two_evaluations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Costs [1,I,K,T,N] of two evaluations, and the objects of each image.

    An image may have no object, or more objects than queries.
    """
    counts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    groups, queries = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    first = rng.random((1, len(counts), groups, max(counts), queries))
    second = first + draw(st.sampled_from([0.0, 0.2, 5.0])) * rng.random(first.shape)
    return first, second, counts


def object_by_query(assignment: Assignment) -> dict[tuple[int, int, int], int]:
    """(image, group, query) -> object."""
    columns = (assignment.image, assignment.group, assignment.query, assignment.target)
    pairs = zip(*(column[0].tolist() for column in columns))
    return {(image, group, query): target for image, group, query, target in pairs}


@pytest.mark.parametrize("match", [match_groups, match_naively])
@given(two_evaluations())
def test_it_equals_the_definition(
    match: Match, evaluations: tuple[np.ndarray, np.ndarray, list[int]]
) -> None:
    first_costs, second_costs, counts = evaluations
    _, images, groups, _, queries = first_costs.shape
    before, now = match(first_costs, counts), match(second_costs, counts)
    shape = (images, groups, queries)
    scores = instability(objects_of_queries(now, shape), objects_of_queries(before, shape))

    objects_before, objects_now = object_by_query(before), object_by_query(now)
    for group in range(groups):
        changes = 0
        for image, query in product(range(images), range(queries)):
            key = (image, group, query)
            changes += objects_before.get(key, -1) != objects_now.get(key, -1)
        assert scores[group] == pytest.approx(changes / images)


@pytest.mark.parametrize(
    "before",
    [
        None,
        matched_objects([0, -1]),
        matched_objects([0, -1, -1], [-1, -1, -1]),
        matched_objects([0, -1], [-1, -1], groups=2),
        matched_objects([-1, -1], [0, -1]),  # as many, in another image
    ],
    ids=["the first evaluation", "other images", "other queries", "other groups", "other objects"],
)
def test_without_a_comparable_evaluation_it_is_undefined(before: np.ndarray | None) -> None:
    now = matched_objects([0, -1], [-1, -1])
    assert np.isnan(instability(now, before)).all()
