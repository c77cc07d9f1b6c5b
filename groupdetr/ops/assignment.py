"""One-to-one assignment: many small problems solved exactly, on the host, from one copy of the costs."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cheapest one-to-one pairs of P problems: costs [P,T,N] -> (rows [P,M], columns [P,M]) with M = min(T,N).

    Objects are the rows and contiguous, the orientation that scipy solves without a copy.
    """
    problems, num_rows, num_columns = costs.shape
    pairs = np.empty((problems, 2, min(num_rows, num_columns)), dtype=np.int64)
    for pair, cost in zip(pairs, costs):
        pair[0], pair[1] = linear_sum_assignment(cost)
    return pairs[:, 0], pairs[:, 1]
