"""What K costs: time and memory of a training step with K groups against the first K, part by part.

    python benchmarks/step.py --model dino-4scale-r50 --groups 1 3 5 11 13 [--group-chunk 1] [--side 320]
    python benchmarks/step.py --device cuda --precision bf16 --height 800 --width 1333 [--compile]
    python benchmarks/step.py --model petr-v99 --height 320 --width 800 --batch 1

Detectors of scenes see six views of that size, or twelve. ``flops`` are counted with the first K's as one: the time
ratio that would cost nothing but arithmetic. On a CPU ``peak`` is the resident memory that a step adds in a process of
its own, on a GPU the allocator's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
import tyro
from measure import Watch

import groupdetr
from groupdetr.data.nuscenes.names import CAMERAS, CLASSES
from groupdetr.experiments import experiment
from groupdetr.modeling.group_chunks import ByChunks
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.masks import Bitmaps
from groupdetr.structures.outputs import Outputs


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    groups: tuple[int, ...] = (1, 11)
    group_chunk: int | None = None  # the last K in chunks of so many, too
    side: int = 320
    height: int | None = None  # instead of side
    width: int | None = None
    queries: int | None = None  # of a group; None: as the model says
    batch: int = 2  # pictures, or scenes
    objects: int = 7
    rounds: int = 5
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    threads: int = 1
    peak: bool = True  # of processes of their own
    out: Path | None = None  # JSON

    @property
    def size(self) -> tuple[int, int]:
        return self.height or self.side, self.width or self.side


class Step:
    """A model without dropout, and a batch of noise."""

    def __init__(self, options: Options, groups: int) -> None:
        torch.manual_seed(0)
        self.options = options
        queries = {} if options.queries is None else {"num_queries": options.queries}
        model = groupdetr.create_model(options.model, num_groups=groups, dropout=0.0, **queries)
        self.model = model.to(options.device)
        self.criterion = groupdetr.create_criterion(self.model)
        of_scenes = experiment(options.model).task.kind == "space"
        self.images = scenes(options) if of_scenes else pictures(options)
        self.targets = [upright(options) if of_scenes else flat(options)] * options.batch
        if options.compile:
            self.model.compile_parts()

    def __call__(self) -> measure.Times:
        self.model.zero_grad(set_to_none=True)
        watch = Watch(self.options.device)
        with self.autocast():
            loss = self.loss(watch)
        loss.backward()
        watch.lap("backward")
        return watch.times

    def loss(self, watch: Watch) -> torch.Tensor:
        """`DetectionTransformer.forward`, and the criterion."""
        features = self.model.backbone(self.images.pixels)
        watch.lap("backbone")
        memory = self.model.encoder(features, *self.images.beside)
        watch.lap("encoder")
        queries = self.model.queries(memory, self.targets)
        watch.lap("queries")
        outputs = Outputs(self.model.decoder(queries, memory), queries)
        watch.lap("decoder")
        losses = self.criterion(outputs, self.targets)
        watch.lap("criterion")
        return torch.stack([*losses.values()]).sum()

    def autocast(self) -> AbstractContextManager[object]:
        device = torch.device(self.options.device).type
        return (
            torch.autocast(device, torch.bfloat16)
            if self.options.precision == "bf16"
            else nullcontext()
        )


def pictures(options: Options) -> groupdetr.Images:
    return groupdetr.Images.from_list(
        [*torch.randn(options.batch, 3, *options.size, device=options.device)]
    )


def scenes(options: Options) -> CameraImages:
    """Through cameras of which nothing is known but that they look somewhere."""
    views = len(CAMERAS) * (2 if experiment(options.model).task.two_frames else 1)
    pixels = torch.randn(options.batch, views, 3, *options.size, device=options.device)
    projections = torch.eye(4) + 0.1 * torch.randn(options.batch, views, 4, 4)
    return CameraImages.seen_through(
        pixels, projections.to(options.device), pixels.new_ones(options.batch)
    )


def flat(options: Options) -> groupdetr.Target:
    """Objects with boxes and masks."""
    boxes = torch.rand(options.objects, 4, device=options.device) * 0.4 + 0.1
    labels = torch.randint(0, 80, (options.objects,), device=options.device)
    return groupdetr.Target(labels, boxes, Bitmaps.of(ellipses(boxes, *options.size)))


def upright(options: Options) -> groupdetr.Target:
    """Objects of nuScenes' classes with boxes in space."""
    boxes = torch.rand(options.objects, 9, device=options.device) + 1
    boxes[:, :2] = 80 * boxes[:, :2] - 120
    return groupdetr.Target(
        torch.randint(0, len(CLASSES), (options.objects,), device=options.device), boxes
    )


def ellipses(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What fits into boxes [T,4]: [T,height,width] bool."""
    x, y = ((torch.arange(n, device=boxes.device) + 0.5) / n for n in (width, height))
    columns, rows = (
        (place - boxes[:, i, None]) / boxes[:, i + 2, None] * 2 for i, place in enumerate((x, y))
    )
    return rows.square()[:, :, None] + columns.square()[:, None] <= 1


class ChunkedStep(Step):
    """With the groups in chunks."""

    def __init__(self, options: Options, groups: int, chunk: int) -> None:
        super().__init__(options, groups)
        self.learner = ByChunks(self.model, self.criterion, chunk)

    def loss(self, watch: Watch) -> torch.Tensor:
        loss, _ = self.learner(self.images, self.targets)
        watch.lap("forward, and backward of chunks")
        return loss


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    kinds: dict[str, Callable[[], Step]] = {
        f"K = {k}": partial(Step, options, k) for k in options.groups
    }
    if options.group_chunk is not None:
        most, chunk = options.groups[-1], options.group_chunk
        kinds[f"K = {most} in chunks of {chunk}"] = partial(ChunkedStep, options, most, chunk)
    steps = {name: make() for name, make in kinds.items()}
    rounds = measure.interleaved(steps, options.rounds)
    first = next(iter(steps))
    rows = {
        name: row(rounds, name, first) | counted(step) | peak(kinds[name], step)
        for name, step in steps.items()
    }
    measure.show(options, rows, options.out)


def row(rounds: measure.Rounds, name: str, first: str) -> dict[str, float]:
    parts = {f"{part}, ms": rounds.ms(name, part) for part in rounds.parts(name)}
    return {"step, ms": rounds.ms(name), "ratio": rounds.ratio(name, to=first), **parts}


def counted(step: Step) -> dict[str, Any]:
    kept = measure.kept_for_backward(step, step.model.parameters())
    if step.options.compile:  # what is compiled cannot be counted
        return {"kept, MiB": kept}
    operations, flops = measure.counted(step)
    return {"GFLOP": flops, "operations": operations, "kept, MiB": kept}


def peak(make: Callable[[], Step], step: Step) -> dict[str, float]:
    """MiB above what there is before a step."""
    if step.options.device == "cpu":
        return {"peak, MiB": measure.peak_of_process(make)} if step.options.peak else {}
    step.model.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return {"peak, MiB": (torch.cuda.max_memory_allocated() - before) / 2**20}


if __name__ == "__main__":
    main(tyro.cli(Options))
