from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.ops.assignment import assign


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_the_pairs_are_the_cheapest_of_all(problems: int, rows: int, columns: int, seed: int) -> None:
    costs = np.random.default_rng(seed).normal(size=(problems, rows, columns)).astype(np.float32)
    row, column = assign(costs)
    assert row.shape == column.shape == (problems, min(rows, columns))
    for cost, r, c in zip(costs, row, column):
        assert len({*r}) == len({*c}) == min(rows, columns)
        assert cost[r, c].sum() <= cheapest(cost) + 1e-5


def cheapest(cost: np.ndarray) -> float:
    """By trying every assignment of the shorter side."""
    short = cost if cost.shape[0] <= cost.shape[1] else cost.T
    picks = permutations(range(short.shape[1]), short.shape[0])
    return min(float(sum(short[i, j] for i, j in enumerate(pick))) for pick in picks)
