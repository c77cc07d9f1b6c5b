"""Our training step against that of the authors' own branch, `GroupDETR` of Atten4Vis/ConditionalDETR.

    python benchmarks/official.py ../ConditionalDETR [--groups 1 11] [--side 320] [--group-chunk 1]

Both have the same weights, pictures and objects, and no dropout; ``loss`` shows that they compute the same. What their
code lacks on today's PyTorch, the parity tests supply. Variants take turns; ratios are theirs over ours.
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
import torch
import tyro
from measure import Watch
from torch import Tensor, nn

import groupdetr
from groupdetr.modeling.group_chunks import AtOnce, ByChunks

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parity.official import FAMILIES, Family, Theirs, build, described


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
    threads: int = 1
    out: Path | None = None  # JSON


class Case:
    """Their model and ours, with its weights, and a batch of noise."""

    def __init__(self, options: Options, groups: int) -> None:
        torch.manual_seed(0)
        family = official(options)
        model, self.their_criterion, args = build(family, groups, dilated=False)
        self.theirs = Theirs(family, model.train(), self.their_criterion, args)
        self.ours = replace(family.recipe, num_groups=groups).build().train()
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save({"model": model.state_dict()}, file.name)
            groupdetr.load_weights(self.ours, file.name)
        self.images = groupdetr.Images.from_list(
            [*torch.randn(options.batch, 3, options.side, options.side)]
        )
        sizes = (options.batch, options.objects)
        labels, boxes = torch.randint(0, 80, sizes), torch.rand(*sizes, 4) * 0.4 + 0.1
        self.targets = [groupdetr.Target(*target) for target in zip(labels, boxes)]

    def their_loss(self) -> Tensor:
        targets = described(self.targets, torch.float32)
        outputs, more = self.theirs(self.images, targets)
        return torch.stack([*self.theirs.losses(outputs, targets, more).values()]).sum()

    def our_loss(self, learner: nn.Module) -> Tensor:
        return learner(self.images, self.targets)[0]


@dataclass
class Variant:
    """Somebody's step."""

    model: nn.Module
    loss: Callable[[], Tensor]

    def __call__(self) -> measure.Times:
        self.model.zero_grad(set_to_none=True)
        watch = Watch()
        loss = self.loss()
        watch.lap("forward, match, compare")
        loss.backward()
        watch.lap("backward")
        self.value = loss.item()
        return watch.times


def official(options: Options) -> Family:
    family = FAMILIES["conditional-detr"]
    os.environ[family.variable] = str(options.checkout)
    return replace(family, recipe=replace(family.recipe, num_queries=options.queries))


def variant(kind: str, options: Options, groups: int) -> Variant:
    case = Case(options, groups)
    if kind == "theirs":
        return Variant(case.theirs.model, case.their_loss)
    criterion = groupdetr.create_criterion(case.ours)
    whole = AtOnce(case.ours, criterion)
    learner = whole if kind == "ours" else ByChunks(case.ours, criterion, options.group_chunk)
    return Variant(case.ours, partial(case.our_loss, learner))


def kinds(options: Options, groups: int) -> list[str]:
    chunks = [f"ours, in chunks of {options.group_chunk}"] if groups > options.group_chunk else []
    return ["theirs", "ours", *chunks]


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    rows: dict[str, dict[str, Any]] = {}
    for groups in options.groups:
        variants = {kind: variant(kind, options, groups) for kind in kinds(options, groups)}
        times = measure.interleaved(variants, options.rounds)
        for kind, run in variants.items():
            rows[f"K = {groups}, {kind}"] = {
                "step, ms": times.ms(kind),
                "speed-up": times.speed_up(kind, over="theirs"),
                "operations": measure.operations(run),
                "kept, MiB": measure.kept_for_backward(run, run.model.parameters()),
                "peak, MiB": measure.peak_of_process(variant, kind, options, groups),
                "loss": f"{run.value:.6f}",
            }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
