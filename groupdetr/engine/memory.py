"""Memory: how much a training may use, and how much a computation needs at its peak."""

from __future__ import annotations

import gc
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupdetr.errors import UsageError

# The part of the free memory that is not used, as a fraction and in bytes, because allocators hold
# more than tensors need. On a CPU, up to 1.24 times as much was measured after one step, and up to
# 0.5 GiB more after a hundred steps with a new image size in every step.
HEADROOM = {"cuda": (0.1, 0), "cpu": (0.25, 1 << 29)}


class ControlGroupFiles(NamedTuple):
    """The file names of a version of Linux control groups: its folder, limit and usage."""

    folder: str
    limit: str
    usage: str
    reclaimable: str  # the row of memory.stat with file pages that can be dropped


CONTROL_GROUPS_V1 = ControlGroupFiles(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
CONTROL_GROUPS_V2 = ControlGroupFiles(
    "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
)


def usable_bytes(device: torch.device, reserved: int = 0) -> int:
    """Return the bytes that the tensors of this process may take.

    On a GPU it is most of the free memory. On a CPU it is most of this process's part of the memory
    that is free in the machine or its container, minus ``reserved`` bytes.
    """
    if device.type not in HEADROOM:
        raise _cannot_measure(device)
    fraction, constant = HEADROOM[device.type]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            import psutil  # which itself needs modules that a system may lack

            in_machine = psutil.virtual_memory().available
        except (ImportError, OSError):  # a container of Linux in which /proc is not mounted
            raise _cannot_measure(device) from None
        available = min(in_machine, *control_group_bytes(Path("/")))
        free = available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - reserved
    return max(0, int((free - constant) * (1 - fraction)))


def _cannot_measure(device: torch.device) -> UsageError:
    return UsageError(
        f"memory cannot be measured on {device.type}",
        remedy="give numbers instead of auto: --batch 8 --groups 11",
    )


def control_group_bytes(root: Path) -> Iterator[int]:
    """Yield the bytes that every control group of this process has left.

    Inside a container, the paths in /proc may be those outside of it. The container's own limit is
    then at the top of the hierarchy, so all parent folders are read as well.
    """
    membership = root / "proc/self/cgroup"
    if not membership.is_file():
        return
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files = CONTROL_GROUPS_V1 if controllers else CONTROL_GROUPS_V2
        top = root / files.folder
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            # A group without a limit has no such file, or "max" in it.
            with suppress(OSError, ValueError, KeyError):
                yield _bytes_left(folder, files)
            if folder == top:
                break


def _bytes_left(folder: Path, files: ControlGroupFiles) -> int:
    """Return the bytes left of a control group's limit. File pages count as free memory."""
    statistics = (folder / "memory.stat").read_text(encoding="utf-8")
    rows = (row.split() for row in statistics.splitlines())
    reclaimable = int(dict(rows)[files.reclaimable])
    limit = int((folder / files.limit).read_text(encoding="utf-8"))
    usage = int((folder / files.usage).read_text(encoding="utf-8"))
    return max(0, limit - usage + reclaimable)


class MemoryMeter(ABC):
    """Measures how many bytes a computation needs at its peak.

    The bytes that were held when the meter was created are not counted.
    """

    @abstractmethod
    def __call__(self, run: Callable[[], object]) -> int:
        """Run the computation and return its peak in bytes.

        `torch.OutOfMemoryError` if it needs more than the limit of the meter.
        """


def create_meter(device: torch.device, limit: int) -> MemoryMeter:
    """Return a meter for computations on ``device`` that may need at most ``limit`` bytes."""
    return CudaMeter(device, limit) if device.type == "cuda" else HostMeter(limit)


class CudaMeter(MemoryMeter):
    """Reads the statistics of CUDA's allocator."""

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device = device
        self.limit = limit
        self.held_before = torch.cuda.memory_allocated(device)

    def __call__(self, run: Callable[[], object]) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        peak = torch.cuda.max_memory_allocated(self.device) - self.held_before
        return expect_below(self.limit, peak)


class HostMeter(MemoryMeter):
    """Counts the bytes of every tensor on the CPU, from its creation until its storage is freed.

    It raises an error before the machine runs out of memory. Memory that an operation allocates and
    frees internally is not counted; PyTorch's operations on a CPU use almost none.
    """

    def __init__(self, limit: int) -> None:
        self.counter = _TensorCounter(limit)

    def __call__(self, run: Callable[[], object]) -> int:
        gc.collect()
        self.counter.peak = self.counter.held
        with self.counter:
            run()
        return self.counter.peak


class _TensorCounter(TorchDispatchMode):
    """Receives the result of every operation and adds up the bytes of new storages."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.held = 0  # bytes of the storages that exist now
        self.peak = 0  # largest value of `held`
        self.known: set[int] = set()  # addresses of the storages that exist now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.add(x.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that is new, until it is freed."""
        address = storage._cdata
        size = storage.nbytes()
        if address in self.known:
            return
        self.known.add(address)
        self.held += size
        weakref.finalize(storage, self.remove, address, size)
        self.peak = expect_below(self.limit, max(self.peak, self.held))

    def remove(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.held -= size


def expect_below(limit: int, peak: int) -> int:
    """Return ``peak``, or raise `torch.OutOfMemoryError` if it is greater than ``limit``."""
    if peak > limit:
        raise torch.OutOfMemoryError(f"{peak} bytes are needed, and the limit is {limit}")
    return peak


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which PyTorch and NumPy report that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "DefaultCPUAllocator" in str(error)


def format_bytes(size: float) -> str:
    """Format bytes: 512 MiB, 1.5 GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
