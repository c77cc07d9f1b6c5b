"""Our training step against that of the authors' branch, `GroupDETR` of Atten4Vis/ConditionalDETR.

    python benchmarks/official.py ../ConditionalDETR [--groups 1 11] [--side 320] [--group-chunk 1]

Both have the same weights, images and objects, and no dropout; the column ``loss`` shows that they
compute the same. The parity tests supply what their code lacks on today's PyTorch. The variants
take turns; ``speed-up`` is their time over ours.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import measure
import peers
import torch
import tyro
from measure import Stopwatch
from torch import Tensor, nn

import groupdetr
from groupdetr.modeling.group_chunks import ChunkedModelWithLoss, ModelWithLoss

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity.official import FAMILIES, Family, Theirs, build, to_their_targets


@dataclass
class Options:
    checkout: tyro.conf.Positional[Path]
    groups: tuple[int, ...] = (1, 11)
    group_chunk: int = 1
    side: int = 320
    batch: int = 2
    objects: int = 7
    queries: int = 300
    rounds: int = 5
    device: str = "cpu"
    threads: int = 1
    quick: bool = False  # smaller and fewer rounds
    out: Path | None = None  # JSON


QUICK = {"side": 192, "queries": 100, "rounds": 1}


class ModelPair:
    """Their model and ours with the same weights, and a batch of noise."""

    def __init__(self, options: Options, groups: int) -> None:
        torch.manual_seed(0)
        family = official_family(options, groups)
        model, criterion, args = build(family, groups, dilated=False)
        self.ours = replace(family.recipe, num_groups=groups).build().train()
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save({"model": model.state_dict()}, file.name)
            groupdetr.load_weights(self.ours, file.name)
        device = options.device
        self.ours.to(device)
        self.theirs = Theirs(family, model.train().to(device), criterion.to(device), args)
        images = torch.randn(options.batch, 3, options.side, options.side)
        self.images = groupdetr.Images.from_list([*images.to(device)])
        labels = torch.randint(0, 80, (options.batch, options.objects)).to(device)
        boxes = (torch.rand(options.batch, options.objects, 4) * 0.4 + 0.1).to(device)
        self.targets = [groupdetr.Target(*target) for target in zip(labels, boxes)]

    def their_loss(self) -> Tensor:
        targets = to_their_targets(self.targets, torch.float32)
        outputs, further_arguments = self.theirs(self.images, targets)
        losses = self.theirs.losses(outputs, targets, further_arguments)
        return torch.stack([*losses.values()]).sum()

    def our_loss(self, model_with_loss: nn.Module) -> Tensor:
        loss, _ = model_with_loss(self.images, self.targets)
        return loss


@dataclass
class LossStep:
    """A training step of one of the two models."""

    model: nn.Module
    loss: Callable[[], Tensor]
    device: str
    value: float = 0.0  # the loss of the last run

    def __call__(self) -> measure.Times:
        """Run forward and backward once, and return the times of the parts."""
        self.model.zero_grad(set_to_none=True)
        stopwatch = Stopwatch(self.device)
        loss = self.loss()
        stopwatch.lap("forward, match, compare")
        loss.backward()
        stopwatch.lap("backward")
        self.value = loss.item()
        return stopwatch.times


def official_family(options: Options, groups: int) -> Family:
    """Return Conditional DETR of the parity tests, with the checkout and the number of queries."""
    remedy = (
        "pass a checkout of the authors' branch: "
        "git clone -b GroupDETR https://github.com/Atten4Vis/ConditionalDETR"
    )
    main_file = options.checkout / "main.py"
    peers.require_file(main_file, "the code of Conditional DETR", remedy)
    family = FAMILIES["conditional-detr"]
    os.environ[family.variable] = str(options.checkout)
    if groups > 1 and not family.has_groups:
        sys.exit(f"this checkout has no Group DETR\n{main_file}\n{remedy}")
    return replace(family, recipe=replace(family.recipe, num_queries=options.queries))


def loss_step(variant: str, options: Options, groups: int) -> LossStep:
    """Return the step of a variant: "theirs", "ours", or ours in chunks of groups."""
    pair = ModelPair(options, groups)
    if variant == "theirs":
        return LossStep(pair.theirs.model, pair.their_loss, options.device)
    criterion = groupdetr.create_criterion(pair.ours)
    model_with_loss: nn.Module
    if variant == "ours":
        model_with_loss = ModelWithLoss(pair.ours, criterion)
    else:
        model_with_loss = ChunkedModelWithLoss(pair.ours, criterion, options.group_chunk)
    return LossStep(pair.ours, partial(pair.our_loss, model_with_loss), options.device)


def variants(options: Options, groups: int) -> list[str]:
    """Return the variants to compare; chunks only if they are smaller than the K groups."""
    names = ["theirs", "ours"]
    if groups > options.group_chunk:
        names.append(f"ours, in chunks of {options.group_chunk}")
    return names


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    rows: dict[str, dict[str, Any]] = {}
    for groups in options.groups:
        steps = {name: loss_step(name, options, groups) for name in variants(options, groups)}
        timings = measure.time_interleaved(steps, options.rounds)
        for name, step in steps.items():
            operations, _ = measure.count_operations(step)
            kept = measure.saved_for_backward(step, step.model.parameters())
            step.model.zero_grad(set_to_none=True)
            make_again = partial(loss_step, name, options, groups)
            rows[f"K = {groups}, {name}"] = {
                "step, ms": timings.ms(name),
                "speed-up": timings.speed_up(name, over="theirs"),
                "operations": operations,
                "kept, MiB": kept,
                "peak, MiB": measure.peak(make_again, step, options.device),
                "loss": f"{step.value:.6f}",
            }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
