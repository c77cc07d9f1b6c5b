"""What matching and comparing cost, against LW-DETR's criterion, rfdetr's and the form that DETR repositories share.

    python benchmarks/criterion.py [--lwdetr CHECKOUT] [--rfdetr FOLDER] [--compiled] [--rounds 7]

Predictions are drawn: six layers, two images, 11 groups of 300 queries, 91 classes; every object has one to six close
rivals in a group, as in a detector that is being trained. A run goes from predictions to their gradients, or is the
matcher alone. "host" is the same with 8 queries and 2 classes, where next to nothing is computed. ``--rfdetr`` is a
folder of packages with rfdetr in it. ``--compiled`` adds ours compiled, for any number of objects, which needs a C++
compiler. ``error`` is the difference of the summed loss from that of the usual form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import criteria
import measure
import torch
import tyro
from criteria import Compare, Contender

from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Target

CROWDS = ((7, 7), (60, 20), (100, 100))
OTHERS = (
    3,
    2,
)  # first of all: what is compiled has seen other numbers of objects by then, and is for any
PEERS = ("usual", "LW-DETR", "rfdetr")  # whom others are compared with


@dataclass
class Options:
    lwdetr: Path | None = None
    rfdetr: Path | None = None
    compiled: bool = False
    rounds: int = 7
    threads: int = 1
    layers: int = 6
    groups: int = 11
    queries: int = 300
    classes: int = 91
    seed: int = 0
    out: Path | None = None  # JSON


class Case:
    """Predictions for two images of so many objects."""

    def __init__(self, counts: Sequence[int], options: Options) -> None:
        torch.manual_seed(options.seed)
        self.name = f"{counts[0]} + {counts[1]} objects"
        self.targets = [
            Target(
                torch.randint(0, options.classes, (n,)),
                torch.rand(n, 4) * 0.3 + torch.tensor([0.35, 0.35, 0, 0]),
            )
            for n in counts
        ]
        self.layers = [self.layer(options) for _ in range(options.layers)]
        self.leaves = [x for layer in self.layers for x in (layer.logits, layer.boxes)]

    def layer(self, options: Options) -> Predictions:
        axes = (len(self.targets), options.groups, options.queries)
        logits, boxes = torch.randn(*axes, options.classes) - 4, torch.rand(*axes, 4) * 0.5 + 0.05
        for image, target in enumerate(self.targets):
            for group in range(options.groups):
                owner = torch.arange(len(target)).repeat_interleave(
                    torch.randint(1, 7, (len(target),))
                )
                query = torch.randint(0, options.queries, owner.shape)
                boxes[image, group, query] = (
                    target.boxes[owner] + 0.02 * torch.randn(len(owner), 4)
                ).clamp(0.01, 0.99)
                logits[image, group, query, target.labels[owner]] += 4
        return Predictions(logits.requires_grad_(), boxes.requires_grad_())

    def loss(self, compare: Compare) -> float:
        return compare(self.layers, self.targets).item()

    def learn(self, compare: Compare) -> None:
        """As far as the gradients of the predictions."""
        torch.autograd.grad(compare(self.layers, self.targets), self.leaves)

    @torch.no_grad()
    def match(self, contender: Contender) -> None:
        contender.match(self.layers, self.targets)

    def kept(self, compare: Compare) -> float:
        """MiB kept for backward, predictions not counted."""
        return measure.kept_for_backward(partial(self.learn, compare), self.leaves)


def contenders(options: Options) -> dict[str, Contender]:
    found, sizes = (
        {"usual": Contender(criteria.usual, criteria.usual_matches)},
        (options.classes, options.groups),
    )
    if options.lwdetr:
        found["LW-DETR"] = criteria.lwdetr(options.lwdetr, *sizes)
    if options.rfdetr:
        found["rfdetr"] = criteria.rfdetr(options.rfdetr, *sizes)
    found["ours"] = criteria.ours(compiled=False)
    if options.compiled:
        found["ours, compiled"] = criteria.ours(compiled=True)
    return found


def compared(
    case: Case, all_of_them: dict[str, Contender], rounds: int
) -> dict[str, dict[str, float]]:
    runs = {
        name: measure.clocked(partial(case.learn, them.compare))
        for name, them in all_of_them.items()
    }
    times, usual = measure.interleaved(runs, rounds), case.loss(criteria.usual)
    return {
        name: timed(times, name)
        | {"kept, MiB": case.kept(them.compare), "error": abs(case.loss(them.compare) / usual - 1)}
        for name, them in all_of_them.items()
    }


def matched(
    case: Case, all_of_them: dict[str, Contender], rounds: int
) -> dict[str, dict[str, float]]:
    runs = {name: measure.clocked(partial(case.match, them)) for name, them in all_of_them.items()}
    times = measure.interleaved(runs, rounds)
    return {f"matcher, {name}": timed(times, name) for name in all_of_them}


def timed(times: measure.Rounds, name: str) -> dict[str, float]:
    over = {
        f"over {peer}": times.speed_up(name, over=peer) for peer in PEERS if peer in times.taken[0]
    }
    return {"ms": times.ms(name), **over}


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.zeros(
        64
    ).atanh()  # without it log1p is ten times slower on some CPUs; any network's forward has the effect
    rows: dict[str, dict[str, float]] = {}
    small = replace(options, queries=8, classes=2, rounds=5 * options.rounds)
    all_of_them = contenders(small)
    for counts in (OTHERS, CROWDS[0]):
        found = compared(Case(counts, small), all_of_them, small.rounds)
        rows |= {f"host, {name}": about for name, about in found.items()}
    all_of_them = contenders(options)
    for counts in (OTHERS, *CROWDS):
        case = Case(counts, options)
        found = compared(case, all_of_them, options.rounds) | matched(
            case, all_of_them, options.rounds
        )
        rows |= {f"{case.name}, {name}": about for name, about in found.items()}
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
