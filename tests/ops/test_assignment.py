"""One-to-one assignment: both solvers, compared with brute force and with each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.ops import assignment
from groupdetr.ops.assignment import assign, by_lapx, by_scipy

Solver = Callable[[np.ndarray], np.ndarray]
RandomCosts = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

with_lapx = pytest.mark.skipif(
    not assignment.lapjvr_batch, reason="lapx >= 0.11 is not installed: pip install lapx"
)
SOLVERS = [by_scipy, pytest.param(by_lapx, marks=with_lapx)]


@pytest.mark.parametrize("solve", SOLVERS)
@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_the_pairs_have_the_lowest_cost_of_all_assignments(
    solve: Solver, problems: int, rows: int, columns: int, seed: int
) -> None:
    costs = np.random.default_rng(seed).normal(size=(problems, rows, columns)).astype(np.float32)
    pairs = solve(costs)
    assert pairs.shape == (problems, min(rows, columns), 2)
    for cost, problem_pairs in zip(costs, pairs):
        row, column = problem_pairs.T
        assert len({*row}) == len({*column}) == min(rows, columns)
        assert cost[row, column].sum() <= lowest_cost(cost) + 1e-5


def lowest_cost(cost: np.ndarray) -> float:
    """Return the lowest cost of all assignments of the shorter side."""
    short = cost if cost.shape[0] <= cost.shape[1] else cost.T
    totals = []
    for columns in permutations(range(short.shape[1]), short.shape[0]):
        totals.append(float(sum(short[row, column] for row, column in enumerate(columns))))
    return min(totals)


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.normal(size=shape)


def tied(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.integers(0, 3, size=shape)


def duplicate_rows(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Every object occurs twice, as in naive matching."""
    problems, rows, columns = shape
    return np.tile(random.normal(size=(problems, rows // 2 + 1, columns)), (1, 2, 1))[:, :rows]


def all_magnitudes(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.normal(size=shape) * 10.0 ** random.integers(-30, 37, size=shape)


def nearly_infinite(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.choice([-3e38, 3e38, 0, 1], size=shape)


def far_from_zero(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1e6 + random.normal(size=shape)


COSTS = [normal, tied, duplicate_rows, all_magnitudes, nearly_infinite, far_from_zero]


@with_lapx
@pytest.mark.parametrize("random_costs", COSTS)
@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_lapx_and_scipy_reach_the_same_cost(
    random_costs: RandomCosts, problems: int, rows: int, columns: int, seed: int
) -> None:
    """The costs agree to double precision. The pairs may differ if several are optimal."""
    costs = random_costs(np.random.default_rng(seed), (problems, rows, columns))
    costs = costs.astype(np.float32)
    tolerance = 1e-15 * float(np.abs(costs).max(initial=0))
    expected = pytest.approx(total_costs(costs, by_scipy(costs)), rel=1e-12, abs=tolerance)
    assert total_costs(costs, by_lapx(costs)) == expected


@with_lapx
@pytest.mark.parametrize("rows", [100, 300, 400])
def test_lapx_and_scipy_reach_the_same_cost_for_many_objects(rows: int) -> None:
    costs = normal(np.random.default_rng(rows), (2, rows, 300)).astype(np.float32)
    expected = pytest.approx(total_costs(costs, by_scipy(costs)), rel=1e-12)
    assert total_costs(costs, by_lapx(costs)) == expected


def total_costs(costs: np.ndarray, pairs: np.ndarray) -> list[float]:
    """Return the sum of the costs of the pairs for each problem, in double precision."""
    totals = []
    for cost, problem_pairs in zip(costs.astype(np.float64), pairs):
        row, column = problem_pairs.T
        totals.append(float(cost[row, column].sum()))
    return totals


@pytest.mark.parametrize(
    "installed", [False, pytest.param(True, marks=with_lapx)], ids=["scipy", "lapx"]
)
def test_leading_axes_are_independent_problems(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The costs may be a view of a larger array."""
    if not installed:
        monkeypatch.setattr(assignment, "lapjvr_batch", None)
    costs = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)[:, ::2, :4]
    rows, columns = assign(costs)
    assert rows.shape == columns.shape == (2, 3, 4)
    for i, j in np.ndindex(2, 3):
        problem_rows, problem_columns = assign(costs[i, j])
        assert np.array_equal(rows[i, j], problem_rows)
        assert np.array_equal(columns[i, j], problem_columns)


def test_lapx_is_used_where_it_is_installed_and_scipy_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def recorded_by_lapx(costs: np.ndarray) -> np.ndarray:
        calls.append("lapx")
        return by_scipy(costs)

    monkeypatch.setattr(assignment, "by_lapx", recorded_by_lapx)
    costs = np.zeros((2, 3, 4), np.float32)
    for installed in (object(), None):
        monkeypatch.setattr(assignment, "lapjvr_batch", installed)
        rows, columns = assign(costs)
        assert rows.shape == columns.shape == (2, 3)
    assert calls == ["lapx"]
