"""One-to-one assignment: many small problems solved exactly, on the host, from one copy of the costs.

Who solves them is chosen here and nowhere else: lapx where it is installed (the extra ``fast``), two to three times as
fast, else scipy. Both are exact; of several cheapest assignments they may take different ones.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment

try:
    from lap import lapjvr_batch  # of lapx >= 0.11; an older one, or lap itself, has no such name
except ImportError:
    lapjvr_batch = None


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cheapest one-to-one pairs of any number of problems: costs [...,T,N] -> (rows [...,M], columns [...,M]) with
    M = min(T,N).

    They are solved in double precision, in which sums of any float32 costs are finite. Objects are the rows and
    contiguous, the orientation that is solved without a copy.
    """
    *axes, rows, columns = costs.shape
    problems = costs.astype(np.float64).reshape(math.prod(axes), rows, columns)
    pairs = by_lapx(problems) if lapjvr_batch else by_scipy(problems)
    pairs = pairs.reshape(*axes, min(rows, columns), 2)
    return pairs[..., 0], pairs[..., 1]


def by_scipy(costs: np.ndarray) -> np.ndarray:
    """One after the other: [P,T,N] -> [P,M,2]."""
    pairs = np.empty((len(costs), min(costs.shape[1:]), 2), dtype=np.int64)
    for pair, cost in zip(pairs, costs):
        pair[:, 0], pair[:, 1] = linear_sum_assignment(cost)
    return pairs


def by_lapx(costs: np.ndarray) -> np.ndarray:
    """All in one call: [P,T,N] -> [P,M,2]. By this thread alone: lapx's own would not survive a fork."""
    pairs = lapjvr_batch(
        costs, True, return_cost=False, n_threads=1, precision="float64", output="pairs"
    )
    return np.array(pairs, dtype=np.int64).reshape(len(costs), min(costs.shape[1:]), 2)
