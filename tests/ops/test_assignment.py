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

with_lapx = pytest.mark.skipif(
    not assignment.lapjvr_batch, reason="lapx >= 0.11 is not installed: pip install lapx"
)
SOLVERS = [by_scipy, pytest.param(by_lapx, marks=with_lapx)]


@pytest.mark.parametrize("solve", SOLVERS)
@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_the_pairs_are_the_cheapest_of_all(
    solve: Solver, problems: int, rows: int, columns: int, seed: int
) -> None:
    costs = np.random.default_rng(seed).normal(size=(problems, rows, columns)).astype(np.float32)
    pairs = solve(costs)
    assert pairs.shape == (problems, min(rows, columns), 2)
    for cost, (r, c) in zip(costs, pairs.swapaxes(1, 2)):
        assert len({*r}) == len({*c}) == min(rows, columns)
        assert cost[r, c].sum() <= cheapest(cost) + 1e-5


def cheapest(cost: np.ndarray) -> float:
    """By trying every assignment of the shorter side."""
    short = cost if cost.shape[0] <= cost.shape[1] else cost.T
    picks = permutations(range(short.shape[1]), short.shape[0])
    return min(float(sum(short[i, j] for i, j in enumerate(pick))) for pick in picks)


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.normal(size=shape)


def tied(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.integers(0, 3, size=shape)


def duplicate_rows(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Objects come twice, as in naive matching."""
    problems, rows, columns = shape
    return np.tile(random.normal(size=(problems, rows // 2 + 1, columns)), (1, 2, 1))[:, :rows]


def all_magnitudes(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.normal(size=shape) * 10.0 ** random.integers(-30, 37, size=shape)


def nearly_infinite(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.choice([-3e38, 3e38, 0, 1], size=shape)


def far_from_zero(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1e6 + random.normal(size=shape)


KINDS = [normal, tied, duplicate_rows, all_magnitudes, nearly_infinite, far_from_zero]


@with_lapx
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_lapx_finds_what_scipy_finds(
    kind: Callable, problems: int, rows: int, columns: int, seed: int
) -> None:
    """Pairs of the same cost, to what double precision tells apart: of the cheapest there may be several."""
    costs = kind(np.random.default_rng(seed), (problems, rows, columns)).astype(np.float32)
    least = 1e-15 * float(np.abs(costs).max(initial=0))
    assert totals(costs, by_lapx(costs)) == pytest.approx(
        totals(costs, by_scipy(costs)), rel=1e-12, abs=least
    )


@with_lapx
@pytest.mark.parametrize("rows", [100, 300, 400])
def test_lapx_finds_what_scipy_finds_in_crowds(rows: int) -> None:
    costs = normal(np.random.default_rng(rows), (2, rows, 300)).astype(np.float32)
    assert totals(costs, by_lapx(costs)) == pytest.approx(totals(costs, by_scipy(costs)), rel=1e-12)


def totals(costs: np.ndarray, pairs: np.ndarray) -> list[float]:
    return [
        float(cost[r, c].sum())
        for cost, (r, c) in zip(costs.astype(np.float64), pairs.swapaxes(1, 2))
    ]


@pytest.mark.parametrize(
    "installed", [False, pytest.param(True, marks=with_lapx)], ids=["scipy", "lapx"]
)
def test_problems_may_stand_on_any_axes_of_a_larger_array(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        monkeypatch.setattr(assignment, "lapjvr_batch", None)
    costs = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)[:, ::2, :4]
    rows, columns = assign(costs)
    assert rows.shape == columns.shape == (2, 3, 4)
    for i, j in np.ndindex(2, 3):
        alone = assign(costs[i, j])
        assert np.array_equal(rows[i, j], alone[0])
        assert np.array_equal(columns[i, j], alone[1])


def test_lapx_solves_where_it_is_installed_and_scipy_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        assignment, "by_lapx", lambda costs: asked.append("lapx") or by_scipy(costs)
    )
    costs = np.zeros((2, 3, 4), np.float32)
    for installed in (object(), None):
        monkeypatch.setattr(assignment, "lapjvr_batch", installed)
        rows, columns = assign(costs)
        assert rows.shape == columns.shape == (2, 3)
    assert asked == ["lapx"]
