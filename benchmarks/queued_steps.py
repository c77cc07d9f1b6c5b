"""What training steps cost on a GPU if nothing waits between them, and what the GPU does in them.

    python benchmarks/queued_steps.py --device cuda [--models conditional-detr-r50 dino-4scale-r50]
    python benchmarks/queued_steps.py --quick

``step.py`` waits for the GPU after every part of a step, so it does not show whether the host keeps
the GPU busy. Here steps are queued one after the other, as in a training: the images and targets
are copied from pinned memory, and AdamW updates the weights. The time is that of all steps, divided
by their number. The columns behind it are those of a profile of further steps:

- ``kernels`` and ``copies``: of a step;
- ``busy``: the share of the time in which a kernel or a copy runs;
- ``waits``: how often the host waits for the GPU in a step, and ``waiting, ms`` for how long.

``tf32`` is fp32 in which matrix products and convolutions use TF32. A step that does not fit into
the memory has a row that says so. On a CPU there are only times.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import measure
import torch
from step import Options as StepOptions
from step import Step
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from groupdetr.engine.optimizer import create_optimizer
from groupdetr.engine.precision import tf32
from groupdetr.engine.step_results import StepResults
from groupdetr.settings import Settings

# The host waits for the GPU in these functions of CUDA.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
PROFILED = 3  # steps


@dataclass
class Options:
    models: tuple[str, ...] = ("conditional-detr-r50", "dino-4scale-r50")
    groups: tuple[int, ...] = (1, 11)
    batches: tuple[int, ...] = (2, 16)  # images of a step
    precisions: tuple[str, ...] = ("fp32", "tf32", "bf16")
    height: int = 800
    width: int = 1333
    objects: int = 7
    warm_up: int = 4  # steps that are not measured
    steps: int = 8
    seconds: float = 150.0  # after which no further case is begun
    compile: bool = False
    device: str = "cpu"
    threads: int = 1
    quick: bool = False  # a small model, and small images
    out: Path | None = None  # JSON


QUICK = {
    "models": ("conditional-detr-tiny",),
    "groups": (1, 3),
    "batches": (2,),
    "precisions": ("fp32", "bf16"),
    "height": 64,
    "width": 96,
    "warm_up": 1,
    "steps": 2,
}


class NoStopwatch:
    """In place of a stopwatch, which would wait for the GPU."""

    def lap(self, part: str) -> None:
        pass


class QueuedStep:
    """A training step that ends when the host has queued it."""

    def __init__(self, options: Options, model: str, groups: int, batch: int, bf16: bool) -> None:
        step_options = StepOptions(
            model=model,
            height=options.height,
            width=options.width,
            batch=batch,
            objects=options.objects,
            device=options.device,
            precision="bf16" if bf16 else "fp32",
            compile=options.compile,
        )
        self.step = Step(step_options, groups)
        self.model = self.step.model.train()
        self.optimizer = create_optimizer(self.model, Settings())
        self.device = torch.device(options.device)
        self.images = pinned(self.step.images)
        self.targets = [pinned(target) for target in self.step.targets]
        self.results: StepResults | None = None

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.step.images = self.images.to(self.device)
        self.step.targets = [target.to(self.device) for target in self.targets]
        with self.step.autocast():
            loss = self.step.loss(NoStopwatch())  # type: ignore[arg-type]
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        # The results of the step before have arrived, because the matcher has waited since then.
        if self.results is not None:
            assert self.results.are_finite()
        self.results = StepResults(["loss"], torch.stack([loss.detach(), norm]))
        self.optimizer.step()


def pinned(x: Any) -> Any:
    """Return a dataclass of tensors on the host, in pinned memory if there is a GPU."""
    on_host = x.to("cpu")
    return on_host.map(torch.Tensor.pin_memory) if torch.cuda.is_available() else on_host


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def row_of(step: QueuedStep, options: Options, batch: int) -> dict[str, Any]:
    """Return the time of a step, its peak memory, and its profile."""
    for _ in range(options.warm_up):
        step()
    synchronise(options.device)
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(options.steps):
        step()
    synchronise(options.device)
    seconds = (time.perf_counter() - started) / options.steps
    row: dict[str, Any] = {"step, ms": 1000 * seconds, "images/s": batch / seconds}
    if options.device == "cpu":
        return row
    row["peak, MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return row | profile_of(step)


def profile_of(step: QueuedStep) -> dict[str, Any]:
    """Return what the GPU and the host do in a step."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    return costs(list(profiled.events() or ()))


def costs(events: Sequence[FunctionEvent]) -> dict[str, Any]:
    """Return what the events of `PROFILED` steps cost, each step on average."""
    # A GPU has events for annotations, such as that of the optimizer, that span several kernels.
    on_gpu = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    copies = [event for event in on_gpu if event.name.startswith("Mem")]
    # The last wait is that for the end of the profile.
    waits = [event for event in events if event.name in WAITS][:-1]
    spans = [(event.time_range.start, event.time_range.end) for event in on_gpu]
    first = min(start for start, _ in spans)
    last = max(end for _, end in spans)
    return {
        "kernels": round((len(on_gpu) - len(copies)) / PROFILED),
        "copies": round(len(copies) / PROFILED),
        "busy": length_of_union(spans) / (last - first),
        "waits": len(waits) / PROFILED,
        "waiting, ms": sum(event.time_range.elapsed_us() for event in waits) / PROFILED / 1000,
    }


def length_of_union(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of spans (start, end)."""
    total, covered = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return total


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    rows: dict[str, dict[str, Any]] = {}
    cases = product(options.models, options.batches, options.groups, options.precisions)
    for model, batch, groups, precision in cases:
        name = f"{model}, K = {groups}, batch {batch}, {precision}"
        if time.monotonic() - began > options.seconds:
            rows[name] = {"failed": "no time left"}
            continue
        if options.device != "cpu":
            torch.cuda.empty_cache()
        try:
            with tf32(precision != "fp32"):
                step = QueuedStep(options, model, groups, batch, precision == "bf16")
                rows[name] = row_of(step, options, batch)
        except torch.OutOfMemoryError:
            rows[name] = {"failed": "out of memory"}
        step = None  # type: ignore[assignment]  # Its memory is freed before the next case.
        measure.write(options, rows, options.out)
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
