"""What matching and losses cost, against LW-DETR's criterion, rfdetr's and the usual form.

    python benchmarks/criterion.py [--lwdetr CHECKOUT] [--rfdetr FOLDER] [--compiled] [--rounds 7]

The usual form is the one that DETR repositories share. Predictions are random: six layers, two
images, 11 groups of 300 queries, 91 classes. In every group, one to six queries are close to each
object, as in a detector that is being trained. A run goes from predictions to their gradients, or
is the matcher alone. "host" is the same with 8 queries and 2 classes, where next to nothing is
computed. ``--rfdetr`` is a folder of packages with rfdetr in it. ``--compiled`` adds our criterion
compiled, for any number of objects, which needs a C++ compiler. ``error`` is the relative
difference of the summed loss from that of the usual form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import criteria
import measure
import torch
from criteria import Criterion, LossFunction

from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Target

OBJECT_COUNTS = ((7, 7), (60, 20), (100, 100))  # objects of the two images
# This runs before the others, so that the compiled criterion was compiled for other numbers of
# objects than those that are measured. It is then compiled for any number.
WARM_UP_COUNTS = (3, 2)
BASELINES = ("usual", "LW-DETR", "rfdetr")  # speed-ups are over these


@dataclass
class Options:
    lwdetr: Path | None = None
    rfdetr: Path | None = None
    compiled: bool = False
    rounds: int = 7
    device: str = "cpu"
    threads: int = 1
    layers: int = 6
    groups: int = 11
    queries: int = 300
    classes: int = 91
    seed: int = 0
    quick: bool = False  # fewer layers, groups and rounds
    out: Path | None = None  # JSON


QUICK = {"layers": 3, "groups": 6, "rounds": 2}


class RandomPredictions:
    """Random predictions of all layers for two images, and random targets with ``counts`` objects.

    Several queries of every group are close to each object.
    """

    def __init__(self, counts: Sequence[int], options: Options) -> None:
        torch.manual_seed(options.seed)
        self.name = f"{counts[0]} + {counts[1]} objects"
        self.device = options.device
        self.targets = []
        for count in counts:
            labels = torch.randint(0, options.classes, (count,))
            boxes = torch.rand(count, 4) * 0.3 + torch.tensor([0.35, 0.35, 0, 0])
            self.targets.append(Target(labels, boxes))
        self.layers = [self.random_layer(options) for _ in range(options.layers)]
        self.targets = [target.to(options.device) for target in self.targets]
        self.leaves = []  # the tensors whose gradients are computed
        for layer in self.layers:
            self.leaves += [layer.logits, layer.boxes]

    def random_layer(self, options: Options) -> Predictions:
        axes = (len(self.targets), options.groups, options.queries)
        logits = torch.randn(*axes, options.classes) - 4
        boxes = torch.rand(*axes, 4) * 0.5 + 0.05
        for image, target in enumerate(self.targets):
            objects = len(target)
            for group in range(options.groups):
                # One to six queries for each object, at random positions of the group.
                queries_per_object = torch.randint(1, 7, (objects,))
                index = torch.arange(objects).repeat_interleave(queries_per_object)
                query = torch.randint(0, options.queries, index.shape)
                close_boxes = target.boxes[index] + 0.02 * torch.randn(len(index), 4)
                boxes[image, group, query] = close_boxes.clamp(0.01, 0.99)
                logits[image, group, query, target.labels[index]] += 4
        logits, boxes = logits.to(options.device), boxes.to(options.device)
        return Predictions(logits.requires_grad_(), boxes.requires_grad_())

    def loss(self, loss_function: LossFunction) -> float:
        return loss_function(self.layers, self.targets).item()

    def backward(self, loss_function: LossFunction) -> None:
        """Compute the loss and the gradients of the predictions."""
        torch.autograd.grad(loss_function(self.layers, self.targets), self.leaves)

    @torch.no_grad()
    def match(self, criterion: Criterion) -> None:
        criterion.match(self.layers, self.targets)

    def saved_mib(self, loss_function: LossFunction) -> float:
        """Return what is saved for the backward pass, in MiB, without the predictions."""
        return measure.saved_for_backward(partial(self.backward, loss_function), self.leaves)


def build_criteria(options: Options) -> dict[str, Criterion]:
    """Return the criteria to compare, by name."""
    compared = {"usual": Criterion(criteria.usual_loss, criteria.usual_match)}
    if options.lwdetr:
        compared["LW-DETR"] = criteria.lwdetr(options.lwdetr, options.classes, options.groups)
    if options.rfdetr:
        compared["rfdetr"] = criteria.rfdetr(options.rfdetr, options.classes, options.groups)
    compared["ours"] = criteria.ours(compiled=False)
    if options.compiled:
        compared["ours, compiled"] = criteria.ours(compiled=True)
    return compared


def compare_losses(
    predictions: RandomPredictions, compared: dict[str, Criterion], rounds: int
) -> dict[str, dict[str, float]]:
    """Return a row for each criterion: matching, losses and backward."""
    runs = {}
    for name, criterion in compared.items():
        run = partial(predictions.backward, criterion.loss)
        runs[name] = measure.timed(run, predictions.device)
    timings = measure.time_interleaved(runs, rounds)
    usual_loss = predictions.loss(criteria.usual_loss)
    rows = {}
    for name, criterion in compared.items():
        row = times_row(timings, name)
        row["kept, MiB"] = predictions.saved_mib(criterion.loss)
        row["error"] = abs(predictions.loss(criterion.loss) / usual_loss - 1)
        rows[name] = row
    return rows


def compare_matchers(
    predictions: RandomPredictions, compared: dict[str, Criterion], rounds: int
) -> dict[str, dict[str, float]]:
    """Return a row for each matcher alone."""
    runs = {}
    for name, criterion in compared.items():
        run = partial(predictions.match, criterion)
        runs[name] = measure.timed(run, predictions.device)
    timings = measure.time_interleaved(runs, rounds)
    return {f"matcher, {name}": times_row(timings, name) for name in compared}


def times_row(timings: measure.Timings, name: str) -> dict[str, float]:
    """Return the time of a criterion, and its speed-up over every baseline that was run."""
    row = {"ms": timings.ms(name)}
    for baseline in BASELINES:
        if baseline in timings.rounds[0]:
            row[f"over {baseline}"] = timings.speed_up(name, over=baseline)
    return row


def warm_up_log1p() -> None:
    """Call atanh, without which log1p is ten times slower on some CPUs.

    The forward pass of any network has the same effect.
    """
    torch.zeros(64).atanh()


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    warm_up_log1p()
    rows: dict[str, dict[str, float]] = {}

    small = replace(options, queries=8, classes=2, rounds=5 * options.rounds)
    compared = build_criteria(small)
    for counts in (WARM_UP_COUNTS, OBJECT_COUNTS[0]):
        predictions = RandomPredictions(counts, small)
        for name, row in compare_losses(predictions, compared, small.rounds).items():
            rows[f"host, {name}"] = row

    compared = build_criteria(options)
    for counts in (WARM_UP_COUNTS, *OBJECT_COUNTS):
        predictions = RandomPredictions(counts, options)
        rows_of_counts = compare_losses(predictions, compared, options.rounds)
        rows_of_counts |= compare_matchers(predictions, compared, options.rounds)
        for name, row in rows_of_counts.items():
            rows[f"{predictions.name}, {name}"] = row
        measure.write(options, rows, options.out)
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
