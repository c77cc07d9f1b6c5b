"""One-to-one assignment: many small problems, solved exactly on the CPU.

The solver is chosen in this file and nowhere else. It is lapx where that is installed (the extra
``fast``), which takes a half to a third of the time, and scipy otherwise. Both are exact. If
several assignments have the same lowest cost, the two may return different ones.
"""

from __future__ import annotations

import math

import numpy as np

try:
    # lapx >= 0.11 has this name. Older versions, and the package lap itself, do not.
    from lap import lapjvr_batch
except ImportError:
    lapjvr_batch = None


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the one-to-one pairs of rows and columns with the lowest total cost.

    ``costs`` [...,T,N] -> rows [...,M] and columns [...,M], where M = min(T,N). Every index of the
    leading axes is a problem of its own. Objects are the rows and queries the columns, an
    orientation that the solvers need not copy.
    """
    *axes, rows, columns = costs.shape
    # In double precision, the sum of any float32 costs is finite.
    problems = costs.astype(np.float64).reshape(math.prod(axes), rows, columns)
    pairs = by_lapx(problems) if lapjvr_batch else by_scipy(problems)
    pairs = pairs.reshape(*axes, min(rows, columns), 2)
    return pairs[..., 0], pairs[..., 1]


def by_scipy(costs: np.ndarray) -> np.ndarray:
    """Solve P problems one after the other: costs [P,T,N] -> pairs (row, column) [P,M,2]."""
    # Inference needs no solver, and scipy takes longer to import than most of this library.
    from scipy.optimize import linear_sum_assignment

    pairs = np.empty((len(costs), min(costs.shape[1:]), 2), dtype=np.int64)
    for problem, cost in enumerate(costs):
        rows, columns = linear_sum_assignment(cost)
        pairs[problem, :, 0] = rows
        pairs[problem, :, 1] = columns
    return pairs


def by_lapx(costs: np.ndarray) -> np.ndarray:
    """Solve P problems in one call: costs [P,T,N] -> pairs (row, column) [P,M,2].

    It uses the calling thread only, because the threads of lapx do not survive a fork.
    """
    pairs = lapjvr_batch(
        costs, True, return_cost=False, n_threads=1, precision="float64", output="pairs"
    )
    return np.array(pairs, dtype=np.int64).reshape(len(costs), min(costs.shape[1:]), 2)
