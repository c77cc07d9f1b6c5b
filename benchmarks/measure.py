"""How all benchmarks measure: interleaved variants, operations, and memory.

The variants of a benchmark take turns, and each is compared with another one of the same round.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from groupdetr.engine.accelerator import environment

Times = dict[str, float]  # seconds by part of a run; "all" is the sum of the parts
TimedRun = Callable[[], Times]  # runs a variant once and returns its times

ATTENTION = "_scaled_dot_product"  # the names of fused attention kernels begin with this
# Operations that only return a view of their input. They are not counted.
VIEWS = {
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "diagonal",
    "expand",
    "lift_fresh",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsqueeze",
    "view",
}


# Time


def clock(device: str = "cpu") -> float:
    """Return a time in seconds, of which only differences have a meaning.

    On a CPU it is process time, because other programs may share the CPU. On a GPU it is wall time
    after all queued kernels are done.
    """
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Measures how long the parts of a run take, and all parts together."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.times: Times = {}
        self.start = clock(device)
        self.last = self.start

    def lap(self, part: str) -> None:
        """Add the time since the last lap to ``part``."""
        now = clock(self.device)
        self.times[part] = self.times.get(part, 0.0) + now - self.last
        self.times["all"] = now - self.start
        self.last = now


def timed(run: Callable[[], object]) -> TimedRun:
    """Return a timed run of one part on a CPU."""

    def timed_run() -> Times:
        stopwatch = Stopwatch()
        run()
        stopwatch.lap("run")
        return stopwatch.times

    return timed_run


@dataclass(frozen=True)
class Timings:
    """How long every variant took, for each round and each part."""

    rounds: Sequence[Mapping[str, Times]]  # for each round: name of the variant -> its times

    def parts(self, name: str) -> list[str]:
        """Return the parts of a variant, without "all"."""
        return [part for part in self.rounds[0][name] if part != "all"]

    def ms(self, name: str, part: str = "all") -> float:
        """Return the median of the rounds in milliseconds."""
        return 1000 * statistics.median(times[name][part] for times in self.rounds)

    def ratio(self, name: str, to: str, part: str = "all") -> float:
        """Return the time of ``name`` divided by the time of ``to``.

        It is the median of the ratios within rounds. Other programs on the machine disturb it less
        than they disturb the times.
        """
        return statistics.median(times[name][part] / times[to][part] for times in self.rounds)

    def speed_up(self, name: str, over: str, part: str = "all") -> float:
        """Return how many times as fast as ``over`` the variant ``name`` is."""
        return self.ratio(over, name, part)


def time_interleaved(runs: Mapping[str, TimedRun], rounds: int, seed: int = 0) -> Timings:
    """Run every variant once in every round, in random order, after one round to warm up."""
    generator = random.Random(seed)
    timings: list[dict[str, Times]] = []
    for i in range(rounds + 1):
        order = generator.sample(list(runs), len(runs))
        timings.append({name: runs[name]() for name in order})
        show_progress(f"round {i} of {rounds}")
    return Timings(timings[1:])


# Operations


class _OperationCounter(TorchDispatchMode):
    """Counts the operations that PyTorch dispatches, and their floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        flop_formula = flop_registry.get(func.overloadpacket)
        result = func(*args, **kwargs)
        if name not in VIEWS:
            self.operations += 1
        if name.startswith(ATTENTION):
            self.flops += _attention_flops(args, backward=name.endswith("backward"))
        elif flop_formula:
            self.flops += flop_formula(*args, **kwargs, out_val=result)
        return result


def _attention_flops(args: Sequence[Any], backward: bool) -> int:
    """Return the floating-point operations of a fused attention kernel.

    There are two matrix products in the forward pass and four in the backward pass. What a fused
    kernel computes again in the backward pass is not counted.
    """
    query, key, value = args[1:4] if backward else args[:3]
    rows = query[..., 0].numel()
    products = query.shape[-1] + value.shape[-1]
    return (4 if backward else 2) * rows * key.shape[-2] * products


def count_operations(run: Callable[[], object]) -> tuple[int, float]:
    """Return the number of operations that a run dispatches, and its GFLOP.

    Forward and backward are counted, and views are not. GFLOP are 10^9 floating-point operations
    of matrix products and convolutions.
    """
    with _OperationCounter() as counter:
        run()
    return counter.operations, counter.flops / 1e9


# Memory


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
    return saved_bytes.peak / 2**20


def peak_in_new_process(make: Callable[..., Callable[[], object]], *args: Any) -> float:
    """Return the resident memory in MiB that one run adds in a process of its own.

    The process runs what ``make(*args)`` returns.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure_peak, make, *args).result()


def _measure_peak(make: Callable[..., Callable[[], object]], *args: Any) -> float:
    torch.set_num_threads(1)
    run = make(*args)
    gc.collect()
    before = _read_process_status("VmRSS")
    # This resets VmHWM, the peak of resident memory, to the current resident memory.
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return (_read_process_status("VmHWM") - before) / 2**10


def _read_process_status(name: str) -> int:
    """Return the value of ``name`` in /proc/self/status. Memory is in KiB."""
    values = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, value = line.split(":", 1)
        values[key] = value
    return int(values[name].split()[0])


# Output


def show_progress(text: str) -> None:
    """Overwrite the last line of a terminal. Nothing is written to a file or a pipe."""
    if sys.stderr.isatty():
        print(f"\r{text}   ", end="", file=sys.stderr, flush=True)


def show(options: object, rows: Mapping[str, Mapping[str, Any]], out: Path | None = None) -> None:
    """Print a table in Markdown, with one row for each name.

    The file ``out`` gets the same as JSON, with the options and the machine.
    """
    columns: list[str] = []
    for row in rows.values():
        for column in row:
            if column not in columns:
                columns.append(column)
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        cells = [_format_cell(row.get(column, "")) for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if out is not None:
        content = {"options": vars(options), "environment": environment(), "results": rows}
        out.write_text(json.dumps(content, indent=1, default=str) + "\n")


def _format_cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
