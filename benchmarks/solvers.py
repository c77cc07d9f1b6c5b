"""What solvers of assignment problems cost, on the problems of a training step.

    python benchmarks/solvers.py [--rounds 21]

There are 132 problems, of six layers, two images and 11 groups, with two kinds of costs: those of
`criterion.py`, where several queries are close to each object ("close rivals"), and random costs
("no favourites"). The times of our solvers include the conversion to double precision. lapx is the
extra ``fast``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import criteria
import criterion
import measure
import numpy as np
import torch
from criterion import OBJECT_COUNTS, RandomPredictions
from scipy.optimize import linear_sum_assignment

from groupdetr.ops import assignment
from groupdetr.structures.targets import TargetBatch

SQUARE_COUNTS = (300, 300)  # as many objects as queries
Solver = Callable[[np.ndarray], object]  # takes the costs [P,T,N] of P problems


@dataclass
class Options:
    rounds: int = 21
    device: str = "cpu"  # on which the costs are computed; all solvers run on the CPU
    seed: int = 0
    quick: bool = False  # fewer rounds and groups
    groups: int = 11
    out: Path | None = None  # JSON


QUICK = {"rounds": 3, "groups": 3}


def matching_costs(predictions: RandomPredictions) -> list[np.ndarray]:
    """Return the costs of our matcher, [L*K,T,N] of each image."""
    targets = TargetBatch.from_targets(predictions.targets)
    supervised = criteria.to_outputs(predictions.layers).supervised()[0]
    costs = criteria.our_set_criterion().matcher.costs(supervised, targets)  # [L,B,K,T,N]
    costs_by_image = []
    for image, count in enumerate(targets.counts):
        image_costs = costs[:, image, :, :count]
        merged = image_costs.reshape(-1, *image_costs.shape[2:])
        costs_by_image.append(np.ascontiguousarray(merged))
    return costs_by_image


def random_costs(costs_by_image: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """Return normally distributed costs of the same shapes."""
    random = []
    for costs in costs_by_image:
        generator = np.random.default_rng(seed)
        random.append(generator.normal(size=costs.shape).astype(np.float32))
    return random


def usual_solver(problems: np.ndarray) -> None:
    """Solve problems as usual: queries are the rows, and every problem is a view of a tensor."""
    for cost in torch.from_numpy(problems).transpose(1, 2):
        linear_sum_assignment(cost)


def in_double(solver: Solver, problems: np.ndarray) -> None:
    solver(problems.astype(np.float64))


def solvers() -> dict[str, Solver]:
    """Return the solvers by name. lapx is left out if it is not installed."""
    named: dict[str, Solver] = {
        "usual": usual_solver,
        "scipy": partial(in_double, assignment.by_scipy),
    }
    if assignment.lapjvr_batch:
        named["lapx"] = partial(in_double, assignment.by_lapx)
    return named


def solve_all(solver: Solver, costs_by_image: list[np.ndarray]) -> None:
    for problems in costs_by_image:
        solver(problems)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for counts in (*OBJECT_COUNTS, SQUARE_COUNTS):
        criterion_options = criterion.Options(
            groups=options.groups, seed=options.seed, device=options.device
        )
        predictions = RandomPredictions(counts, criterion_options)
        close_rivals = matching_costs(predictions)
        no_favourites = random_costs(close_rivals, options.seed)
        for kind, costs in (("close rivals", close_rivals), ("no favourites", no_favourites)):
            runs = {}
            for name, solver in solvers().items():
                runs[name] = measure.timed(partial(solve_all, solver, costs))
            timings = measure.time_interleaved(runs, options.rounds)
            for name in runs:
                rows[f"{predictions.name}, {kind}, {name}"] = {
                    "ms": timings.ms(name),
                    "speed-up": timings.speed_up(name, over="usual"),
                }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
