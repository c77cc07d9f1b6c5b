"""What solvers of assignment problems cost, on the problems of a training step.

    python benchmarks/solvers.py [--rounds 21]

The costs are those of benchmarks/criterion.py: 132 problems, where objects have close rivals; and costs without
favourites. Ours count from the conversion to double precision on. lapx is the extra ``fast``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import criteria
import measure
import numpy as np
import torch
import tyro
from criterion import CROWDS, Case
from criterion import Options as Drawn
from scipy.optimize import linear_sum_assignment

from groupdetr.ops import assignment
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.targets import Objects

SQUARE = (300, 300)  # as many objects as queries
Solve = Callable[[np.ndarray], Any]


@dataclass
class Options:
    rounds: int = 21
    seed: int = 0
    out: Path | None = None  # JSON


def costs(case: Case) -> list[np.ndarray]:
    """Those of ours, [L*K,T,N] of each image."""
    objects, queries = Objects.from_targets(case.targets), criteria.no_queries(case.layers)
    found = criteria.criterion().costs(Outputs(case.layers, queries).stages()[0], objects)
    images = (found[:, i, :, :n] for i, n in enumerate(objects.counts))
    return [np.ascontiguousarray(x.reshape(-1, *x.shape[2:])) for x in images]


def usual(problems: np.ndarray) -> None:
    """Queries are the rows, and every problem is a view of a tensor."""
    for cost in torch.from_numpy(problems).transpose(1, 2):
        linear_sum_assignment(cost)


def solvers() -> dict[str, Solve]:
    ours = {
        "scipy": assignment.by_scipy,
        **({"lapx": assignment.by_lapx} if assignment.lapjvr_batch else {}),
    }
    return {"usual": usual, **{name: partial(in_double, solve) for name, solve in ours.items()}}


def in_double(solve: Solve, problems: np.ndarray) -> None:
    solve(problems.astype(np.float64))


def solved(solve: Solve, images: list[np.ndarray]) -> None:
    for problems in images:
        solve(problems)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for counts in (*CROWDS, SQUARE):
        case = Case(counts, Drawn(seed=options.seed))
        rivals = costs(case)
        shuffled = [
            np.random.default_rng(options.seed).normal(size=x.shape).astype(np.float32)
            for x in rivals
        ]
        for kind, images in (("close rivals", rivals), ("no favourites", shuffled)):
            runs = {
                name: measure.clocked(partial(solved, solve, images))
                for name, solve in solvers().items()
            }
            times = measure.interleaved(runs, options.rounds)
            rows |= {
                f"{case.name}, {kind}, {name}": {
                    "ms": times.ms(name),
                    "speed-up": times.speed_up(name, over="usual"),
                }
                for name in runs
            }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
