"""What K groups cost: time and memory of a training step with K groups, part by part.

    python benchmarks/step.py --model dino-4scale-r50 --groups 1 3 5 11 13 [--group-chunk 1]
    python benchmarks/step.py --model conditional-detr-tiny --groups 1 6 --groups-per-step 2
    python benchmarks/step.py --model conditional-detr-lite --groups 1 6 --freeze backbone encoder
    python benchmarks/step.py --device cuda --precision bf16 --height 800 --width 1333 [--compile]
    python benchmarks/step.py --model petr-v99 --height 320 --width 800 --batch 1

``ratio`` is the time over the time of the first K of --groups. Its counterpart in ``GFLOP`` is the
ratio that would result if nothing but arithmetic cost time. A 3D detector gets six camera images
of the given size for each scene, or twelve if it takes two frames. On a CPU, ``peak`` is the
resident memory that a step adds in a process of its own; on a GPU, it is that of the allocator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from measure import Stopwatch
from torch import Tensor

import groupdetr
from groupdetr.data.nuscenes.names import CAMERAS, CLASSES
from groupdetr.engine.step_groups import groups_of_step, set_step_groups
from groupdetr.engine.task import Task
from groupdetr.modeling.group_chunks import ChunkedModelWithLoss
from groupdetr.registry import experiment
from groupdetr.settings import Part
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.masks import CroppedMasks
from groupdetr.structures.outputs import Outputs
from groupdetr.tasks.registry import task_class


@dataclass
class Options:
    model: str = "conditional-detr-r50"
    groups: tuple[int, ...] = (1, 11)
    group_chunk: int | None = None  # also run the last K in chunks of so many groups
    groups_per_step: int | None = None  # also run so many groups of the last K, drawn in every step
    freeze: tuple[Part, ...] = ()  # parts that are not trained
    cache_features: bool = False  # also run the last K with the features of the frozen parts given
    side: int = 320
    height: int | None = None  # instead of side
    width: int | None = None
    queries: int | None = None  # of a group; None: the number of the model
    classes: int | None = None  # None: the number of the model
    batch: int = 2  # images, or scenes
    objects: int = 7
    rounds: int = 5
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    threads: int = 1
    peak: bool = True  # measure the peak in processes of their own
    quick: bool = False  # smaller and fewer rounds
    out: Path | None = None  # JSON

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.height or self.side, self.width or self.side

    @property
    def task(self) -> type[Task]:
        """The class of the task that the model is for."""
        return task_class(experiment(self.model).task)


QUICK = {"side": 192, "rounds": 1}


class Step:
    """A training step: a model without dropout, and a batch of noise."""

    def __init__(self, options: Options, groups: int) -> None:
        torch.manual_seed(0)
        self.options = options
        fields: dict[str, Any] = {"num_groups": groups, "dropout": 0.0}
        if options.queries is not None:
            fields["num_queries"] = options.queries
        if options.classes is not None:
            fields["num_classes"] = options.classes
        model = groupdetr.create_model(options.model, **fields)
        self.model = model.to(options.device)
        self.criterion = groupdetr.create_criterion(self.model)
        self.images: groupdetr.Images | CameraImages
        if options.task.input_kind == "scenes":
            self.images = random_scenes(options)
            target = random_3d_target(options)
        else:
            self.images = random_images(options)
            target = random_target(options)
        self.targets = [target] * options.batch
        if options.freeze:
            self.model.freeze(options.freeze)
        if options.compile:
            self.model.compile_parts()

    def __call__(self) -> measure.Times:
        """Run forward and backward once, and return the times of the parts."""
        self.model.zero_grad(set_to_none=True)
        stopwatch = Stopwatch(self.options.device)
        with self.autocast():
            loss = self.loss(stopwatch)
        loss.backward()
        stopwatch.lap("backward")
        return stopwatch.times

    def loss(self, stopwatch: Stopwatch) -> Tensor:
        """Return the loss, by the steps of `DetectionTransformer.forward` and the criterion."""
        features = self.model.backbone(self.images.pixels, self.images.padding)
        stopwatch.lap("backbone")
        memory = self.model.encoder(features, self.images)
        stopwatch.lap("encoder")
        queries = self.model.queries(memory, self.targets)
        stopwatch.lap("queries")
        outputs = Outputs(self.model.decoder(queries, memory), queries)
        stopwatch.lap("decoder")
        losses = self.criterion(outputs, self.targets)
        stopwatch.lap("criterion")
        return torch.stack([*losses.values()]).sum()

    def autocast(self) -> AbstractContextManager[object]:
        if self.options.precision == "bf16":
            return torch.autocast(torch.device(self.options.device).type, torch.bfloat16)
        return nullcontext()


class ChunkedStep(Step):
    """A training step that computes the groups in chunks."""

    def __init__(self, options: Options, groups: int, chunk: int) -> None:
        super().__init__(options, groups)
        self.model_with_loss = ChunkedModelWithLoss(self.model, self.criterion, chunk)

    def loss(self, stopwatch: Stopwatch) -> Tensor:
        loss, _ = self.model_with_loss(self.images, self.targets)
        stopwatch.lap("forward, and backward of chunks")
        return loss


class DrawnStep(Step):
    """A training step of some of the groups, which are drawn in every step."""

    def __init__(self, options: Options, groups: int, per_step: int) -> None:
        super().__init__(options, groups)
        self.settings = groupdetr.Settings(groups_per_step=per_step)
        self.groups = groups
        self.steps = 0

    def __call__(self) -> measure.Times:
        step_groups = groups_of_step(self.settings, self.groups, self.steps, progress=0.0)
        set_step_groups(self.model, step_groups)
        self.steps += 1
        return super().__call__()


class CachedStep(Step):
    """A training step that is given the features that frozen parts have computed."""

    def __init__(self, options: Options, groups: int) -> None:
        super().__init__(options, groups)
        with torch.no_grad(), self.autocast():
            self.features = self.model.backbone(self.images.pixels, self.images.padding)
            self.memory = self.model.encoder(self.features, self.images)

    def loss(self, stopwatch: Stopwatch) -> Tensor:
        memory = self.memory
        if "encoder" not in self.options.freeze:
            memory = self.model.encoder(self.features, self.images)
            stopwatch.lap("encoder")
        queries = self.model.queries(memory, self.targets)
        stopwatch.lap("queries")
        outputs = Outputs(self.model.decoder(queries, memory), queries)
        stopwatch.lap("decoder")
        losses = self.criterion(outputs, self.targets)
        stopwatch.lap("criterion")
        return torch.stack([*losses.values()]).sum()


def random_images(options: Options) -> groupdetr.Images:
    """Return images of noise."""
    pixels = torch.randn(options.batch, 3, *options.size, device=options.device)
    return groupdetr.Images.from_list([*pixels])


def random_scenes(options: Options) -> CameraImages:
    """Return scenes of noise. Their cameras have random projections close to the identity."""
    views = len(CAMERAS)
    if options.task.two_frames:
        views *= 2
    pixels = torch.randn(options.batch, views, 3, *options.size, device=options.device)
    projections = torch.eye(4) + 0.1 * torch.randn(options.batch, views, 4, 4)
    elapsed = pixels.new_ones(options.batch)
    return CameraImages.from_projections(pixels, projections.to(options.device), elapsed)


def random_target(options: Options) -> groupdetr.Target:
    """Return random objects with boxes, and the ellipses in the boxes as masks."""
    boxes = torch.rand(options.objects, 4, device=options.device) * 0.4 + 0.1
    classes = min(80, options.classes or 80)
    labels = torch.randint(0, classes, (options.objects,), device=options.device)
    masks = CroppedMasks.from_dense(ellipses(boxes, *options.size))
    return groupdetr.Target(labels, boxes, masks)


def random_3d_target(options: Options) -> groupdetr.Target:
    """Return random objects of nuScenes' classes with 3D boxes [T,9]."""
    boxes = torch.rand(options.objects, 9, device=options.device) + 1
    boxes[:, :2] = 80 * boxes[:, :2] - 120  # x and y from -40 to 40 metres
    labels = torch.randint(0, len(CLASSES), (options.objects,), device=options.device)
    return groupdetr.Target(labels, boxes)


def ellipses(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the ellipses that fit into boxes [T,4] as masks, [T,height,width] bool."""
    centre_x, centre_y, box_width, box_height = boxes.unsqueeze(-1).unbind(1)  # [T,1] each
    x = (torch.arange(width, device=boxes.device) + 0.5) / width
    y = (torch.arange(height, device=boxes.device) + 0.5) / height
    # Distance from the centre, where 1 is the edge of the box.
    distance_x = (x - centre_x) / box_width * 2  # [T,width]
    distance_y = (y - centre_y) / box_height * 2  # [T,height]
    return distance_y.square()[:, :, None] + distance_x.square()[:, None] <= 1


def main(options: Options) -> None:
    if options.cache_features and "backbone" not in options.freeze:
        # The row would compare a step that trains the backbone with one that does not.
        sys.exit("--cache-features needs a frozen backbone, as a training does\n--freeze backbone")
    torch.set_num_threads(options.threads)
    makers: dict[str, Callable[[], Step]] = {}
    for groups in options.groups:
        makers[f"K = {groups}"] = partial(Step, options, groups)
    if options.group_chunk is not None:
        groups, chunk = options.groups[-1], options.group_chunk
        makers[f"K = {groups} in chunks of {chunk}"] = partial(ChunkedStep, options, groups, chunk)
    groups = options.groups[-1]
    if options.groups_per_step is not None:
        per_step = options.groups_per_step
        makers[f"{per_step} of K = {groups}"] = partial(DrawnStep, options, groups, per_step)
    if options.cache_features:
        makers[f"K = {groups}, cached features"] = partial(CachedStep, options, groups)

    steps = {name: make() for name, make in makers.items()}
    timings = measure.time_interleaved(steps, options.rounds)
    first = next(iter(steps))
    rows = {}
    for name, step in steps.items():
        row: dict[str, Any] = {"images": "{} of {} x {}".format(options.batch, *options.size)}
        row |= times_row(timings, name, first)
        row |= cost_row(step)
        row |= peak_row(makers[name], step)
        rows[name] = row
    measure.show(options, rows, options.out)


def times_row(timings: measure.Timings, name: str, first: str) -> dict[str, float]:
    """Return the time of a step, its ratio to the step ``first``, and the times of its parts."""
    row = {"step, ms": timings.ms(name), "ratio": timings.ratio(name, to=first)}
    for part in timings.parts(name):
        row[f"{part}, ms"] = timings.ms(name, part)
    return row


def cost_row(step: Step) -> dict[str, Any]:
    """Return the operations of a step, and what it saves for the backward pass."""
    saved = measure.saved_for_backward(step, step.model.parameters())
    if step.options.compile:
        # The operations inside compiled graphs are not dispatched, so they cannot be counted.
        return {"kept, MiB": saved}
    operations, gflop = measure.count_operations(step)
    return {"GFLOP": gflop, "operations": operations, "kept, MiB": saved}


def peak_row(make: Callable[[], Step], step: Step) -> dict[str, float]:
    """Return the peak memory of a step in MiB, without what is allocated before the step."""
    if not step.options.peak:
        return {}
    step.model.zero_grad(set_to_none=True)
    return {"peak, MiB": measure.peak(make, step, step.options.device)}


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
