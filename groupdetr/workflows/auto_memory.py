"""Fitting a training to memory: how much of a step is computed at once, found by measuring steps at their worst.

The result of a step is the same in pieces of its batch and in chunks of its groups, so these are chosen for memory
alone: of all ways to compute a step, the one of the fewest passes that fits. Memory is linear in the pixels of a piece,
in the groups of a chunk, and in both together. So four small steps tell which way is worth a try; the chosen one was
tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from groupdetr.cli.options.train import Options
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine import optimizer as optim
from groupdetr.engine.memory import meter, ran_out, readable, usable
from groupdetr.engine.task import Task, Worst
from groupdetr.errors import UsageError
from groupdetr.modeling.group_chunks import independent, learner
from groupdetr.settings import Settings


def fitted(
    options: Options, recipe: Recipe, task: Task, machine: Accelerator, say: Callable[[str], None]
) -> Options:
    """The options with numbers where ``auto`` was, the same in all processes; and says why."""
    if not options.fit and options.groups != "auto":
        return options
    settings, case = (
        options.settings,
        Case.of(recipe, options.settings, task, machine.num_processes),
    )
    ways, memory = (
        case.ways(fewer=options.groups == "auto"),
        min(gather_object([usable(machine.device, task.kept)])),
    )
    about = f"{readable(memory)} to be used on {machine.device.type}; at worst, {case.worst}"
    say(f"memory  {about}")
    fit = Fit(ways, Probe(case, machine, memory), memory) if machine.is_main_process else None
    way, measured = broadcast_object_list([(fit.way, str(fit)) if fit else None])[0]
    if way is None:
        least = next(smallest(ways))
        raise UsageError(
            f"a step needs more memory than there is, even with {least} at once",
            about,
            thrift(settings),
        )
    say(f"        images x groups at once: {measured}")
    say(f"chosen  --groups {way.groups} --batch {settings.batch} {flags(way)}")
    settings = replace(settings, accumulate=way.pieces, group_chunk=way.chunk)
    return replace(options, groups=way.groups, fit=False, settings=settings)


def remedy(options: Options, recipe: Recipe, task: Task, machine: Accelerator, run: Path) -> str:
    """What to type after memory ran out in this process: the way that would have fitted, if there is one."""
    machine.free_memory()
    failed = Case.of(recipe, options.settings, task, machine.num_processes)
    case = replace(failed, settings=replace(options.settings, accumulate=1, group_chunk=None))
    memory = usable(machine.device, task.kept)
    way = Fit(case.ways(fewer=False), Probe(case, machine, memory), memory, [failed.current]).way
    return (
        f"groupdetr train --resume {run} {flags(way)}"
        if way
        else f"resume with {thrift(case.settings)}"
    )


def flags(way: Way) -> str:
    return f"--accumulate {way.pieces} --group-chunk {way.chunk}"


def thrift(settings: Settings) -> str:
    """What else saves memory."""
    asked = {
        "--accumulate": settings.accumulate > 1,
        "--group-chunk": settings.group_chunk is not None,
    }
    kept = [f"without {flag}" for flag, given in asked.items() if given]
    more = {"--recompute": not settings.recompute, "--precision bf16": settings.precision == "fp32"}
    return " or ".join(
        [*kept, f"--imgsz below {settings.imgsz}", *(flag for flag, new in more.items() if new)]
    )


# ways to compute a step


@dataclass(frozen=True)
class Way:
    """Of computing a step of K groups."""

    groups: int  # K
    chunk: int  # groups whose decoder and loss are computed at once
    pieces: int  # of a batch
    images: int  # of a piece, on one process
    pixels: int  # of a piece, at worst

    @property
    def passes(self) -> int:
        """Of the decoder."""
        return self.pieces * math.ceil(self.groups / self.chunk)

    def covers(self, other: Way) -> bool:
        """Is at least as much computed at once as in the other?"""
        return self.chunk >= other.chunk and self.images >= other.images

    def __str__(self) -> str:
        images, groups = (
            f"{n} {noun}{'s' * (n > 1)}"
            for n, noun in ((self.images, "image"), (self.chunk, "group"))
        )
        return f"{images} and {groups}"


@dataclass(frozen=True)
class Case:
    """A training whose steps are to be fitted, on ``processes``."""

    recipe: Recipe
    settings: Settings
    worst: Worst
    processes: int

    @classmethod
    def of(cls, recipe: Recipe, settings: Settings, task: Task, processes: int) -> Case:
        def burden(objects: int) -> int:
            return objects * (1 + recipe.copies(objects))

        return cls(recipe, settings, task.worst(burden), processes)

    @property
    def current(self) -> Way:
        """The way that the settings say."""
        groups = self.recipe.num_groups
        return self.way(groups, self.settings.group_chunk or groups, self.settings.accumulate)

    def way(self, groups: int, chunk: int, pieces: int) -> Way:
        images = self.settings.batch // (self.processes * pieces)
        return Way(groups, min(chunk, groups), pieces, images, self.worst.pixels(images))

    def ways(self, fewer: bool) -> list[Way]:
        """All, best first: most groups, fewest passes, fewest pieces, for these change the noise of denoising and
        chunks do not. The number of pieces and the size of chunks stay where they were asked for.

        ``fewer`` groups than the recipe's save memory only where groups cannot be computed in chunks.
        """
        share, most = self.settings.batch // self.processes, self.recipe.num_groups
        pieces = [n for n in range(1, share + 1) if share % n == 0]
        pieces = pieces if self.settings.accumulate == 1 else [self.settings.accumulate]
        chunks = [(most, math.ceil(most / n)) for n in range(1, most + 1)]
        if not independent(self.recipe.compete, self.recipe.match):
            chunks = [
                (k, k)
                for k in range(1 + (self.recipe.inference_group or 0), most + 1)
                if fewer or k == most
            ]
        elif self.settings.group_chunk is not None:
            chunks = [(most, self.settings.group_chunk)]
        every = {self.way(*groups, n) for groups, n in product(chunks, pieces)}
        return sorted(every, key=lambda way: (-way.groups, way.passes, way.pieces))


# which of them fits


class Fit:
    """The first of ``ways`` that was measured and fits into ``memory`` bytes, None if there is none.

    ``measure`` says what a way needs, infinitely much where memory ran out; of the ``failed`` that is known.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        measure: Callable[[Way], float],
        memory: int,
        failed: Sequence[Way] = (),
    ) -> None:
        self.measure, self.memory = measure, memory
        self.known: dict[Way, float] = dict.fromkeys(failed, math.inf)
        for way in smallest(ways):
            self.needed(way)
        self.way = next(
            (way for way in ways if self.predicted(way) <= memory and self.needed(way) <= memory),
            None,
        )

    def needed(self, way: Way) -> float:
        """Bytes, measured where there is hope."""
        if way not in self.known:
            self.known[way] = math.inf if self.hopeless(way) else self.measure(way)
        return self.known[way]

    def hopeless(self, way: Way) -> bool:
        return any(needed == math.inf and way.covers(other) for other, needed in self.known.items())

    def predicted(self, way: Way) -> float:
        """Bytes, from all that was measured."""
        finite = {other: needed for other, needed in self.known.items() if needed < math.inf}
        if not finite or self.hopeless(way):
            return math.inf
        slopes = np.linalg.lstsq(
            np.array([*map(sizes, finite)]), np.array([*finite.values()]), rcond=None
        )[0]
        return float(slopes @ sizes(way))

    def __str__(self) -> str:
        """All that was measured."""
        known = [(way, needed) for way, needed in self.known.items() if needed < math.inf]
        return ", ".join(
            f"{readable(needed)} for {way.images} x {way.chunk}" for way, needed in known
        )


def sizes(way: Way) -> tuple[float, ...]:
    """What memory is linear in."""
    return 1.0, way.pixels, way.chunk, way.pixels * way.chunk


def smallest(ways: Sequence[Way]) -> Iterator[Way]:
    """The way of the fewest images and groups at once, the next of more images, of more groups, and of more of both."""
    images, groups = sorted({way.images for way in ways}), sorted({way.chunk for way in ways})
    for corner in ((0, 0), (1, 0), (0, 1), (1, 1)):
        wanted = images[min(corner[0], len(images) - 1)], groups[min(corner[1], len(groups) - 1)]
        yield next(way for way in ways if (way.images, way.chunk) == wanted)


# measuring


class Probe:
    """Says what steps need at their worst, by computing them: with a detector of its own, so that neither weights nor
    random numbers of the training are touched. ``memory``: bytes that must not be passed."""

    def __init__(self, case: Case, machine: Accelerator, memory: int) -> None:
        self.case, self.machine, self.meter = case, machine, meter(machine.device, memory)
        self.trained: Trained | None = None

    def __call__(self, way: Way) -> float:
        device = self.machine.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                if self.trained is None or self.trained.groups != way.groups:
                    self.trained = None  # before there is another
                    self.meter(partial(self.build, way.groups))
                return self.meter(partial(self.step, way))
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                return math.inf

    def build(self, groups: int) -> None:
        self.trained = Trained(self.case, groups, self.machine.device)

    def step(self, way: Way) -> None:
        """Forward and backward of one piece."""
        assert self.trained is not None
        device, piece = self.machine.device, self.case.worst.batch(way.images)
        network, targets = (
            self.trained.learner(way.chunk),
            [target.to(device) for target in piece.targets],
        )
        with self.machine.autocast():
            loss, _ = network(piece.images(device), targets, torch.ones((), device=device))
        loss.backward()


class Trained:
    """What lasts from step to step: weights, the optimizer's moments, the running mean of the weights, and the buckets
    in which several processes exchange gradients."""

    def __init__(self, case: Case, groups: int, device: torch.device) -> None:
        self.groups, self.criterion, settings = groups, case.recipe.criterion(), case.settings
        self.model = (
            replace(case.recipe, num_groups=groups, pretrained_backbone=False)
            .build()
            .to(device)
            .train()
        )
        self.optimizer = optim.optimizer(self.model, settings)
        learning = [p for p in self.model.parameters() if p.requires_grad]
        for p in learning:
            p.grad = torch.zeros_like(p)
        self.optimizer.step()
        self.mean = optim.running_mean(self.model, settings.ema) if settings.ema else None
        self.buckets = [torch.empty_like(p) for p in learning if case.processes > 1]

    def learner(self, chunk: int) -> nn.Module:
        """With all groups at once or in chunks, and without gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        return learner(self.model, self.criterion, chunk)
