"""What matching and comparing cost, against LW-DETR's criterion, rfdetr's and the form that DETR repositories share.

    python benchmarks/criterion.py [--lwdetr CHECKOUT] [--rfdetr FOLDER] [--compiled] [--rounds 7]

Predictions are drawn: six layers, two images, 11 groups of 300 queries, 91 classes; every object has one to six close
rivals in a group, as in a detector that is being trained. Each round runs every variant once, in random order, from
predictions to their gradients; figures are medians of process time, and ratios medians of the ratios within rounds.
"host" is the same with 8 queries and 2 classes, where next to nothing is computed. Matchers alone are timed on the
same predictions, solvers alone on the costs of these, and on costs without favourites. ``--rfdetr`` is a folder of
packages with rfdetr in it. ``--compiled`` adds ours compiled, for any number of objects, which needs a C++ compiler.
``error`` is the difference of the summed loss from that of the usual form.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import tyro
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.engine.machine import environment
from groupdetr.groups import match_groups
from groupdetr.ops import assignment
from groupdetr.structures import Assignment, Objects, Outputs, Predictions, Queries, Target

Compare = Callable[[list[Predictions], list[Target]], Tensor]  # to the summed loss
Match = Callable[[list[Predictions], list[Target]], Any]
CROWDS = ((7, 7), (60, 20), (100, 100))
SQUARE = (300, 300)  # as many objects as queries, for solvers alone
OTHERS = (3, 2)  # first of all: what is compiled has seen other numbers of objects by then, and is for any
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


@dataclass
class Contender:
    compare: Compare
    match: Match


class Case:
    """Predictions for two images of so many objects."""

    def __init__(self, counts: Sequence[int], options: Options) -> None:
        torch.manual_seed(options.seed)
        self.targets = [
            Target(torch.randint(0, options.classes, (n,)), torch.rand(n, 4) * 0.3 + torch.tensor([0.35, 0.35, 0, 0]))
            for n in counts
        ]
        self.layers = [self.layer(options) for _ in range(options.layers)]
        self.leaves = [x for layer in self.layers for x in (layer.logits, layer.boxes)]

    def layer(self, options: Options) -> Predictions:
        axes = (len(self.targets), options.groups, options.queries)
        logits, boxes = torch.randn(*axes, options.classes) - 4, torch.rand(*axes, 4) * 0.5 + 0.05
        for image, target in enumerate(self.targets):
            for group in range(options.groups):
                owner = torch.arange(len(target)).repeat_interleave(torch.randint(1, 7, (len(target),)))
                query = torch.randint(0, options.queries, owner.shape)
                boxes[image, group, query] = (target.boxes[owner] + 0.02 * torch.randn(len(owner), 4)).clamp(0.01, 0.99)
                logits[image, group, query, target.labels[owner]] += 4
        return Predictions(logits.requires_grad_(), boxes.requires_grad_())

    def loss(self, compare: Compare) -> float:
        return compare(self.layers, self.targets).item()

    def run(self, compare: Compare) -> float:
        start = time.process_time()
        torch.autograd.grad(compare(self.layers, self.targets), self.leaves)
        return time.process_time() - start

    def run_matcher(self, match: Match) -> float:
        start = time.process_time()
        with torch.no_grad():
            match(self.layers, self.targets)
        return time.process_time() - start

    def kept(self, compare: Compare) -> float:
        """MiB kept for backward, each storage once, predictions not counted."""
        own = {x.untyped_storage().data_ptr() for x in self.leaves}
        kept: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            compare(self.layers, self.targets)
        return sum(kept.values()) / 2**20

    def costs(self) -> list[np.ndarray]:
        """Those of ours, [L*K,T,N] of each image."""
        objects = Objects.from_targets(self.targets)
        costs = criterion().costs(Outputs(self.layers, no_queries(self.layers)).stages()[0], objects)
        images = (costs[:, i, :, :n] for i, n in enumerate(objects.counts))
        return [np.ascontiguousarray(x.reshape(-1, *x.shape[2:])) for x in images]


def criterion() -> SetCriterion:
    return SetCriterion([Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)], match_groups)


def no_queries(layers: list[Predictions]) -> Queries:
    nothing = layers[0].boxes.detach()
    return Queries(nothing, nothing)


def ours(compiled: bool) -> Contender:
    compares = criterion()
    if compiled:
        compares.compile_parts()

    def compare(layers: list[Predictions], targets: list[Target]) -> Tensor:
        losses = compares(Outputs(layers, no_queries(layers)), targets)
        return torch.stack(list(losses.values())).sum()

    def match(layers: list[Predictions], targets: list[Target]) -> Assignment:
        stages = Outputs(layers, no_queries(layers)).stages()[0]
        return compares.assign(stages, Objects.from_targets(targets))

    return Contender(compare, match)


# the usual form: a loop over layers, one over groups and images, one-hot targets, GIoU of all with all -------------


def usual(layers: list[Predictions], targets: list[Target]) -> Tensor:
    groups = layers[0].logits.shape[1]
    objects = max(1, sum(map(len, targets))) * groups
    return torch.stack([usual_layer(layer, targets) for layer in layers]).sum() / objects


def usual_layer(layer: Predictions, targets: list[Target]) -> Tensor:
    logits, boxes = layer.logits.flatten(1, 2), layer.boxes.flatten(1, 2)
    image, query, label, wanted = usual_match(logits.detach(), boxes.detach(), targets, layer.logits.shape[1])
    present = torch.zeros_like(logits)
    present[image, query, label] = 1
    score, penalty = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, present, reduction="none")
    right = score * present + (1 - score) * (1 - present)
    focal = ((0.25 * present + 0.75 * (1 - present)) * (1 - right) ** 2 * penalty).sum()
    said = boxes[image, query]
    overlap = generalized_box_iou(box_convert(said, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
    return 2 * focal + 5 * (said - wanted).abs().sum() + 2 * (1 - torch.diag(overlap)).sum()


def usual_matches(layers: list[Predictions], targets: list[Target]) -> list[tuple[Tensor, ...]]:
    groups = layers[0].logits.shape[1]
    return [usual_match(x.logits.flatten(1, 2), x.boxes.flatten(1, 2), targets, groups) for x in layers]


def usual_match(logits: Tensor, boxes: Tensor, targets: list[Target], groups: int) -> tuple[Tensor, ...]:
    """Image, query, label and box of every match."""
    labels, wanted = torch.cat([t.labels for t in targets]), torch.cat([t.boxes for t in targets])
    score = logits.flatten(0, 1).sigmoid()
    absent, present = 0.75 * score**2 * -(1 - score + 1e-8).log(), 0.25 * (1 - score) ** 2 * -(score + 1e-8).log()
    said = boxes.flatten(0, 1)
    corners = (box_convert(x, "cxcywh", "xyxy") for x in (said, wanted))
    cost = 2 * (present - absent)[:, labels] + 5 * torch.cdist(said, wanted, p=1) - 2 * generalized_box_iou(*corners)
    cost = cost.view(len(targets), boxes.shape[1], -1).cpu()
    size, found = boxes.shape[1] // groups, []
    for group, part in enumerate(cost.split(size, dim=1)):
        for image, own in enumerate(part.split([len(t) for t in targets], -1)):
            query, target = map(torch.as_tensor, linear_sum_assignment(own[image]))
            chosen = targets[image].labels[target], targets[image].boxes[target]
            found.append((torch.full_like(query, image), query + group * size, *chosen))
    return tuple(map(torch.cat, zip(*found)))


# the criteria of others, which have the same interface ------------------------------------------------------------

WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def said(layers: list[Predictions], targets: list[Target]) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    outputs = [{"pred_logits": x.logits.flatten(1, 2), "pred_boxes": x.boxes.flatten(1, 2)} for x in layers]
    return outputs, [vars(target) for target in targets]


def summed(criterion: torch.nn.Module, layers: list[Predictions], targets: list[Target]) -> Tensor:
    outputs, wanted = said(layers, targets)
    losses = criterion({**outputs[-1], "aux_outputs": outputs[:-1]}, wanted)
    return torch.stack([WEIGHTS.get(name.rstrip("_0123456789"), 0.0) * loss for name, loss in losses.items()]).sum()


def lwdetr(checkout: Path, options: Options) -> Contender:
    """Of a checkout of Atten4Vis/LW-DETR; what its model alone imports need not be there."""
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint", "MultiScaleDeformableAttention"):
        sys.modules.setdefault(name, MagicMock())
    sys.path.insert(0, str(checkout))
    from models.lwdetr import SetCriterion as Theirs  # type: ignore[import-not-found]
    from models.matcher import HungarianMatcher  # type: ignore[import-not-found]

    matcher = HungarianMatcher(2.0, 5.0, 2.0)
    criterion = Theirs(options.classes, matcher, WEIGHTS, 0.25, ["labels", "boxes"], group_detr=options.groups).train()

    def match(layers: list[Predictions], targets: list[Target]) -> list[Any]:
        outputs, wanted = said(layers, targets)
        return [matcher(output, wanted, group_detr=options.groups) for output in outputs]

    return Contender(partial(summed, criterion), match)


def rfdetr(packages: Path, options: Options) -> Contender:
    """Of rfdetr, as it runs on a CPU. Its packages are entered without what they import for everything else."""
    for name in ("rfdetr", "rfdetr.models", "rfdetr.models.heads", "rfdetr.utilities"):
        package = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(packages.joinpath(*name.split(".")))]
    from rfdetr.models.criterion import SetCriterion as Theirs  # type: ignore[import-not-found]
    from rfdetr.models.matcher import HungarianMatcher  # type: ignore[import-not-found]

    matcher = HungarianMatcher(2.0, 5.0, 2.0)
    criterion = Theirs(options.classes, matcher, WEIGHTS, 0.25, ["labels", "boxes"], group_detr=options.groups).train()

    def match(layers: list[Predictions], targets: list[Target]) -> list[Any]:
        outputs, wanted = said(layers, targets)
        matches: list[Any] = matcher._match_many(outputs, wanted, group_detr=options.groups)
        assert matches, "they fall back to a matcher for each layer"
        return matches

    return Contender(partial(summed, criterion), match)


# solvers alone ---------------------------------------------------------------------------------------------------


def usual_solve(costs: np.ndarray) -> None:
    """Queries are the rows, and every problem is a view of a tensor."""
    for cost in torch.from_numpy(costs).transpose(1, 2):
        linear_sum_assignment(cost)


def solvers() -> dict[str, Callable[[np.ndarray], Any]]:
    """Ours from the conversion of the costs on."""
    found = {"scipy": assignment.by_scipy, **({"lapx": assignment.by_lapx} if assignment.lapjvr_batch else {})}
    return {"usual": usual_solve} | {
        name: lambda costs, solve=solve: solve(costs.astype(np.float64)) for name, solve in found.items()
    }


def timed(solve: Callable[[np.ndarray], Any], costs: list[np.ndarray]) -> float:
    start = time.process_time()
    for cost in costs:
        solve(cost)
    return time.process_time() - start


# -----------------------------------------------------------------------------------------------------------------


def measure(run: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, and the speed-up over every peer that is there; one round to warm up."""
    times: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        order = random.sample(list(run), len(run))
        times.append({name: run[name]() for name in order})
    found = {name: {"ms": 1000 * statistics.median(t[name] for t in times[1:])} for name in run}
    for peer in run.keys() & set(PEERS):
        for name in run:
            found[name][f"over {peer}"] = statistics.median(t[peer] / t[name] for t in times[1:])
    return found


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    columns = ("ms", *(f"over {peer}" for peer in PEERS), "kept_mib", "error")
    lines = [f"| case | variant | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 2)]
    for case, variants in results.items():
        for name, about in variants.items():
            cells = [f"{about[c]:.3g}" if c in about else "" for c in columns]
            lines.append(f"| {case} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def contenders(options: Options) -> dict[str, Contender]:
    found = {"usual": Contender(usual, usual_matches)}
    if options.lwdetr:
        found["LW-DETR"] = lwdetr(options.lwdetr, options)
    if options.rfdetr:
        found["rfdetr"] = rfdetr(options.rfdetr, options)
    found["ours"] = ours(compiled=False)
    if options.compiled:
        found["ours, compiled"] = ours(compiled=True)
    return found


def compared(case: Case, all_of_them: dict[str, Contender], rounds: int) -> dict[str, dict[str, float]]:
    found = measure({n: partial(case.run, contender.compare) for n, contender in all_of_them.items()}, rounds)
    for name, contender in all_of_them.items():
        found[name]["kept_mib"] = case.kept(contender.compare)
        found[name]["error"] = abs(case.loss(contender.compare) / case.loss(usual) - 1)
    return found


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    random.seed(options.seed)
    torch.zeros(64).atanh()  # without it log1p is ten times slower on some CPUs; any network's forward has the effect
    results: dict[str, Any] = {}
    small = replace(options, queries=8, classes=2, rounds=5 * options.rounds)
    all_of_them = contenders(small)
    for counts in (OTHERS, CROWDS[0]):
        results["host"] = compared(Case(counts, small), all_of_them, small.rounds)
    all_of_them = contenders(options)
    for counts in (OTHERS, *CROWDS):
        case, name = Case(counts, options), f"{counts[0]} + {counts[1]} objects"
        results[name] = compared(case, all_of_them, options.rounds)
        matchers = {n: partial(case.run_matcher, contender.match) for n, contender in all_of_them.items()}
        results[f"matcher, {name}"] = measure(matchers, options.rounds)
    for counts in (*CROWDS, SQUARE):
        trained = Case(counts, options).costs()
        shuffled = [np.random.default_rng(0).normal(size=x.shape).astype(np.float32) for x in trained]
        for kind, costs in (("trained", trained), ("no favourites", shuffled)):
            solve = {n: partial(timed, solver, costs) for n, solver in solvers().items()}
            results[f"solver, {counts[0]} + {counts[1]} objects, {kind}"] = measure(solve, 3 * options.rounds)
    print(table(results), file=sys.stderr)
    print(
        json.dumps({"options": vars(options), "environment": environment(), "results": results}, indent=1, default=str)
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
