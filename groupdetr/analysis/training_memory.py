"""Fig. 7: the memory of a training step, with naive and with efficient attention.

Naive attention stores the weights of every query and token for the backward pass. Efficient
attention computes them again.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from groupdetr.registry import create_criterion, create_model
from groupdetr.structures.images import Images
from groupdetr.structures.targets import Target

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
MIB = 2**20


@dataclass(frozen=True)
class StepMemory:
    """The memory of one training step in MiB."""

    kept: float  # what autograd keeps for the backward pass at most
    peak: float | None  # what the step adds to the memory of a process; None: not measured


@dataclass(frozen=True)
class MemoryStep:
    """Which training step is measured: a model, its K, and a batch of noise."""

    model: str
    groups: int
    naive: bool  # True: attention weights are stored
    batch: int = 2
    height: int = 800
    width: int = 1333
    objects: int = 7  # of an image, the mean of COCO
    queries: int | None = None  # N; None: that of the model

    def prepare(self) -> Callable[[], None]:
        """Return a function that runs the step once: forward, criterion and backward."""
        step, _ = self.build()
        return step

    def build(self) -> tuple[Callable[[], None], list[Tensor]]:
        """Return the function that runs the step, and the parameters of the model."""
        torch.manual_seed(0)
        # On a CPU, torch has no efficient attention with dropout.
        options: dict[str, object] = {"num_groups": self.groups, "dropout": 0.0}
        if self.queries is not None:
            options["num_queries"] = self.queries
        model = create_model(self.model, **options)
        model.train()
        criterion = create_criterion(model)
        pixels = torch.randn(self.batch, 3, self.height, self.width)
        images = Images.from_list([*pixels])
        boxes = torch.rand(self.objects, 4) * 0.4 + 0.1
        # Every model has a first class.
        labels = torch.zeros(self.objects, dtype=torch.long)
        targets = [Target(labels, boxes)] * self.batch

        def step() -> None:
            model.zero_grad(set_to_none=True)
            with self.attention():
                losses = criterion(model(images, targets), targets)
                torch.stack([*losses.values()]).sum().backward()

        return step, list(model.parameters())

    def attention(self) -> AbstractContextManager[object]:
        """Let attention store its weights, or let torch choose a kernel that does not."""
        return sdpa_kernel(SDPBackend.MATH) if self.naive else nullcontext()


def step_memory(step: MemoryStep) -> StepMemory:
    """Measure a training step on a CPU: once for what is kept, and in a process of its own."""
    run, parameters = step.build()
    kept = saved_for_backward(run, parameters)
    del run, parameters
    gc.collect()
    return StepMemory(kept, peak_in_new_process(partial(MemoryStep.prepare, step)))


class _SavedBytes:
    """Bytes that autograd graphs hold for the backward pass, now and at most.

    Each storage is counted once. The storages of the tensors ``excluded`` are not counted.
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        # data pointer of a storage -> number of references to it
        self.references = Counter(x.untyped_storage().data_ptr() for x in excluded)
        self.bytes = 0
        self.peak = 0

    def add_reference(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        pointer = storage.data_ptr()
        if self.references[pointer] == 0:
            self.bytes += storage.nbytes()
        self.references[pointer] += 1
        self.peak = max(self.peak, self.bytes)

    def remove_reference(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        pointer = storage.data_ptr()
        self.references[pointer] -= 1
        if self.references[pointer] == 0:
            self.bytes -= storage.nbytes()


class _SavedTensor:
    """A tensor that a graph holds. It counts as saved until the graph is freed."""

    def __init__(self, saved_bytes: _SavedBytes, x: Tensor) -> None:
        self.saved_bytes = saved_bytes
        self.x = x
        saved_bytes.add_reference(x)

    def __del__(self) -> None:
        self.saved_bytes.remove_reference(self.x)


def saved_for_backward(run: Callable[[], object], excluded: Iterable[Tensor]) -> float:
    """Return the largest memory in MiB that autograd graphs hold at one time during a run.

    Tensors ``excluded``, such as parameters and inputs, are not counted.
    """
    saved_bytes = _SavedBytes(excluded)

    def pack(x: Tensor) -> _SavedTensor:
        return _SavedTensor(saved_bytes, x)

    def unpack(saved: _SavedTensor) -> Tensor:
        return saved.x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        run()
    return saved_bytes.peak / MIB


def peak_in_new_process(make: Callable[..., Callable[[], object]], *args: Any) -> float | None:
    """Return the resident memory in MiB that one run adds in a process of its own.

    The process runs what ``make(*args)`` returns. It is None on systems without Linux's /proc.
    """
    if not CLEAR_REFS.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_peak, make, *args).result()


def _measure_peak(make: Callable[..., Callable[[], object]], *args: Any) -> float:
    torch.set_num_threads(1)
    run = make(*args)
    gc.collect()
    before = _read_process_status("VmRSS")
    # This resets VmHWM, the peak of resident memory, to the current resident memory.
    CLEAR_REFS.write_text("5", encoding="ascii")
    run()
    return (_read_process_status("VmHWM") - before) / 2**10


def _read_process_status(name: str) -> int:
    """Return the value of ``name`` in /proc/self/status. Memory is in KiB."""
    values = {}
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        key, value = line.split(":", 1)
        values[key] = value
    return int(values[name].split()[0])
