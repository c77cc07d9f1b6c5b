"""How all benchmarks measure: interleaved variants, operations, and memory.

The variants of a benchmark take turns, and each is compared with another one of the same round.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import groupdetr.modeling.flop_formulas  # noqa: F401 (formulas of oneDNN)
from groupdetr.analysis.training_memory import MIB, peak_in_new_process, saved_for_backward
from groupdetr.engine.accelerator import environment

__all__ = ["MIB", "peak_in_new_process", "saved_for_backward"]  # of the package, for benchmarks

Times = dict[str, float]  # seconds by part of a run; "all" is the sum of the parts
TimedRun = Callable[[], Times]  # runs a variant once and returns its times
OptionsType = TypeVar("OptionsType")

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


# Options


def parse(options: type[OptionsType], quick: Mapping[str, Any]) -> OptionsType:
    """Return the options of the command line, an instance of the dataclass ``options``.

    With ``--quick``, the values ``quick`` are the defaults instead of those of the class. Options
    that are typed have precedence over both.
    """
    if "--quick" not in sys.argv[1:]:
        return tyro.cli(options)
    required: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        has_default = field.default is not dataclasses.MISSING
        if not has_default and field.default_factory is dataclasses.MISSING:
            required[field.name] = tyro.MISSING
    return tyro.cli(options, default=options(**required, **quick, quick=True))


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


def timed(run: Callable[[], object], device: str = "cpu") -> TimedRun:
    """Return a timed run of one part."""

    def timed_run() -> Times:
        stopwatch = Stopwatch(device)
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


def peak(make: Callable[[], Callable[[], object]], run: Callable[[], object], device: str) -> Any:
    """Return the memory in MiB that a run adds at most, without what was allocated before.

    On a CPU it is the resident memory of a new process, in which ``make`` returns the run; it is
    None on systems without Linux's /proc. On a GPU it is the memory that the allocator gives to
    ``run``, which must have released what it allocated before.
    """
    return peak_in_new_process(make) if device == "cpu" else peak_of_tensors(run, device) / MIB


def peak_of_tensors(run: Callable[[], object], device: str) -> int:
    """Return the bytes that tensors take at most in a run, without those from before.

    It is the same in every run. Resident memory is not: how much of what was freed is used again
    depends on what the process has allocated before.
    """
    if device == "cpu":
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
        events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = [event for event in events if event.name() == "[memory]"]
        changes.sort(key=lambda event: event.start_ns())
        return max(accumulate((event.nbytes() for event in changes), initial=0))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# Output


def show_progress(text: str) -> None:
    """Overwrite the last line of a terminal. Nothing is written to a file or a pipe."""
    if sys.stderr.isatty():
        print(f"\r{text}   ", end="", file=sys.stderr, flush=True)


def show(options: object, rows: Mapping[str, Mapping[str, Any]], out: Path | None = None) -> None:
    """Print a table in Markdown, with one row for each name.

    The file ``out`` gets the same as JSON, with the options, the machine and the date.
    """
    for line in markdown(rows):
        print(line)
    write(options, rows, out)


def write(options: object, rows: Mapping[str, Mapping[str, Any]], out: Path | None) -> None:
    """Write the rows as JSON, with the options, the machine and the date; None: nothing.

    What a limit of time may end writes the rows that it has, again and again.
    """
    if out is None:
        return
    content = {"options": public(vars(options)), "environment": machine(), "results": rows}
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table in Markdown, with one row for each name.

    There are several tables if rows have no columns in common, see `divided`.
    """
    lines: list[str] = []
    for group in divided(rows):
        columns = column_names(group)
        lines += [""] if lines else []
        lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, row in group.items():
            cells = [format_cell(row.get(column)) for column in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def divided(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """Return the rows in groups: a row that has no column of the group before begins another."""
    groups: list[dict[str, Mapping[str, Any]]] = []
    for name, row in rows.items():
        if not groups or not set(row) & set(column_names(groups[-1])):
            groups.append({})
        groups[-1][name] = row
    return groups


def column_names(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of all columns, in the order in which rows have them."""
    columns: list[str] = []
    for row in rows.values():
        for column in row:
            if column not in columns:
                columns.append(column)
    return columns


def machine() -> dict[str, Any]:
    """Return the machine, the versions of packages and the date."""
    values: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
    }
    values |= environment()
    del values["command"]  # It has the paths of this machine.
    return values


def processor() -> str:
    """Return the name of the processor; empty if the system does not tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def public(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON has them, and of every path only its last part.

    Results are published, and do not tell where files are on this machine.
    """
    values = {}
    for name, value in options.items():
        values[name] = value.name if isinstance(value, Path) else value
    return values


def format_cell(value: Any) -> str:
    """Return a cell of a table; an empty one for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
