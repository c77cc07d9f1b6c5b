"""How all benchmarks measure: variants in turns, each against the first, and what a run computes and holds."""

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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from groupdetr.engine.accelerator import environment

Times = dict[str, float]  # seconds, by part
ATTENTION = "_scaled_dot_product"  # kernels whose names begin so
VIEWS = {
    *(
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "detach",
        "diagonal",
        "expand",
        "lift_fresh",
        "permute",
    ),
    *(
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
    ),
    "view",
}


# time


def clock(device: str = "cpu") -> float:
    """Process time on a CPU, since others may share it; on a GPU wall time, when it is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class Watch:
    """Tells how long the parts of a run take, and the whole."""

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.times = device, Times()
        self.start = self.last = clock(device)

    def lap(self, part: str) -> None:
        """``part`` ends here."""
        now = clock(self.device)
        self.times[part] = self.times.get(part, 0.0) + now - self.last
        self.last = now
        self.times["all"] = now - self.start


def clocked(run: Callable[[], object]) -> Callable[[], Times]:
    """A run on a CPU that has no parts, as a variant."""

    def timed() -> Times:
        watch = Watch()
        run()
        watch.lap("run")
        return watch.times

    return timed


@dataclass(frozen=True)
class Rounds:
    """How long every variant took, part by part, round by round."""

    taken: Sequence[Mapping[str, Times]]

    def parts(self, name: str) -> list[str]:
        """Of a variant, the whole left out."""
        return [part for part in self.taken[0][name] if part != "all"]

    def ms(self, name: str, part: str = "all") -> float:
        """Milliseconds, the median."""
        return 1000 * statistics.median(taken[name][part] for taken in self.taken)

    def ratio(self, name: str, to: str, part: str = "all") -> float:
        """The time of ``name`` in that of ``to``: the median of the ratios within rounds, which what else the machine
        does disturbs less than the times."""
        return statistics.median(taken[name][part] / taken[to][part] for taken in self.taken)

    def speed_up(self, name: str, over: str, part: str = "all") -> float:
        return self.ratio(over, name, part)


def interleaved(runs: Mapping[str, Callable[[], Times]], rounds: int, seed: int = 0) -> Rounds:
    """Every round runs every variant once, in random order, after one round to warm up."""
    order, taken = random.Random(seed), list[dict[str, Times]]()
    for _ in range(rounds + 1):
        taken.append({name: runs[name]() for name in order.sample(list(runs), len(runs))})
        progress(f"round {len(taken) - 1} of {rounds}")
    return Rounds(taken[1:])


# work and memory


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name, formula = func.overloadpacket.__name__, flop_registry.get(func.overloadpacket)
        result = func(*args, **(kwargs or {}))
        self.operations += name not in VIEWS
        if name.startswith(ATTENTION):
            self.flops += _of_attention(args, backward=name.endswith("backward"))
        elif formula:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _of_attention(args: Sequence[Any], backward: bool) -> int:
    """Of its matrix products, two forward and four backward: what fused kernels compute anew is not counted."""
    query, key, value = args[1:4] if backward else args[:3]
    products = query.shape[-1] + value.shape[-1]
    return (4 if backward else 2) * query[..., 0].numel() * key.shape[-2] * products


def operations(run: Callable[[], object]) -> int:
    """What a run asks of PyTorch, forward and backward, views not counted."""
    return counted(run)[0]


def counted(run: Callable[[], object]) -> tuple[int, float]:
    """The same, and 10^9 floating-point operations of its matrix products and convolutions."""
    with _Count() as count:
        run()
    return count.operations, count.flops / 1e9


class _Kept:
    """Bytes that graphs hold for backward, each storage once, those ``apart`` not counted; and the most there were."""

    def __init__(self, apart: Iterable[torch.Tensor]) -> None:
        self.times = Counter(x.untyped_storage().data_ptr() for x in apart)
        self.bytes = self.peak = 0

    def change(self, x: torch.Tensor, by: int) -> None:
        storage = x.untyped_storage()
        before, after = self.times[storage.data_ptr()], self.times[storage.data_ptr()] + by
        self.times[storage.data_ptr()] = after
        self.bytes += storage.nbytes() * ((after > 0) - (before > 0))
        self.peak = max(self.peak, self.bytes)


class _Held:
    """A tensor in a graph, until the graph is gone."""

    def __init__(self, kept: _Kept, x: torch.Tensor) -> None:
        self.kept, self.x = kept, x
        kept.change(x, 1)

    def __del__(self) -> None:
        self.kept.change(self.x, -1)


def kept_for_backward(run: Callable[[], object], apart: Iterable[torch.Tensor]) -> float:
    """MiB that graphs hold at once, parameters and whatever else is ``apart`` not counted."""
    kept = _Kept(apart)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: _Held(kept, x), lambda held: held.x):
        run()
    return kept.peak / 2**20


def peak_of_process(make: Callable[..., Callable[[], object]], *args: Any) -> float:
    """MiB of resident memory that one run of what ``make(*args)`` returns adds, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, make, *args).result()


def _peak(make: Callable[..., Callable[[], object]], *args: Any) -> float:
    torch.set_num_threads(1)
    run = make(*args)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on, VmHWM is the most there was since
    run()
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


# what is shown


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}   ", end="", file=sys.stderr, flush=True)


def show(options: object, rows: Mapping[str, Mapping[str, Any]], out: Path | None = None) -> None:
    """A table to read, of a row for each name, and as JSON to ``out``, with the options and the machine."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |")
    if out is not None:
        about = {"options": vars(options), "environment": environment(), "results": rows}
        out.write_text(json.dumps(about, indent=1, default=str) + "\n")


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
