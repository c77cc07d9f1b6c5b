"""Memory: how much there is for a training, and how much a computation needs at its peak."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupdetr.errors import UsageError

# What is left alone of the free memory, as a share and in bytes: allocators hold more than tensors need. On a CPU up to
# 1.24 times as much was measured after one step, and up to 0.5 GiB more after a hundred of ever other sizes.
HEADROOM = {"cuda": (0.1, 0), "cpu": (0.25, 1 << 29)}

# of control groups: where their folders are, and the files that say what is allowed, used, and kept of files
VERSION_1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)
VERSION_2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def usable(device: torch.device, apart: int = 0) -> int:
    """Bytes that the tensors of this process may take: most of what is free on the GPU; or of its share of what is free
    in the machine or its container, where it needs bytes ``apart``."""
    if device.type not in HEADROOM:
        raise UsageError(
            f"memory cannot be measured on {device.type}", remedy="give numbers instead of auto"
        )
    share, rest = HEADROOM[device.type]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        there = min(psutil.virtual_memory().available, *allowed(Path("/")))
        free = there // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - apart
    return max(0, int((free - rest) * (1 - share)))


def allowed(root: Path) -> Iterator[int]:
    """Bytes left to this process by every control group that it is in. Inside a container, paths may be those outside
    it, and then the container's limit stands at the top."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, *names = VERSION_1 if controllers else VERSION_2
        own = root / top / path.lstrip("/")
        for folder in (own, *own.parents):
            with suppress(
                OSError, ValueError, KeyError
            ):  # there is no limit: no such file, or "max" in it
                yield left(folder, *names)
            if folder == root / top:
                break


def left(folder: Path, limit: str, used: str, file_pages: str) -> int:
    """Of a control group's memory; what it holds of files goes when it must."""
    rows = (row.split() for row in (folder / "memory.stat").read_text().splitlines())
    reclaimable = int(dict(rows)[file_pages])
    return max(
        0, int((folder / limit).read_text()) - int((folder / used).read_text()) + reclaimable
    )


class Meter(Protocol):
    """Told to run something, says what this needs at its peak: bytes, beyond what was held when the meter was made."""

    def __call__(self, run: Callable[[], object]) -> int: ...


def meter(device: torch.device, ceiling: int) -> Meter:
    """For what runs on ``device``, "cpu" or "cuda"; torch.OutOfMemoryError where it passes ``ceiling`` bytes."""
    return CudaMeter(device, ceiling) if device.type == "cuda" else HostMeter(ceiling)


class CudaMeter:
    """Asks the allocator."""

    def __init__(self, device: torch.device, ceiling: int) -> None:
        self.device, self.ceiling, self.before = (
            device,
            ceiling,
            torch.cuda.memory_allocated(device),
        )

    def __call__(self, run: Callable[[], object]) -> int:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return expect_below(
            self.ceiling, torch.cuda.max_memory_allocated(self.device) - self.before
        )


class HostMeter(TorchDispatchMode):
    """Counts the bytes of every tensor from its first appearance until its storage is gone, and stops before the
    machine does. What operations hold while they run is not seen: with PyTorch's on a CPU, next to nothing."""

    def __init__(self, ceiling: int) -> None:
        super().__init__()
        self.ceiling, self.held, self.peak = ceiling, 0, 0
        self.known: set[int] = set()  # storages, by address

    def __call__(self, run: Callable[[], object]) -> int:
        gc.collect()
        self.peak = self.held
        with self:
            run()
        return self.peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.take(x.untyped_storage())
        return result

    def take(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self.known:
            return
        self.known.add(address)
        self.held += size
        weakref.finalize(storage, self.drop, address, size)
        self.peak = expect_below(self.ceiling, max(self.peak, self.held))

    def drop(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.held -= size


def expect_below(ceiling: int, peak: int) -> int:
    if peak > ceiling:
        raise torch.OutOfMemoryError(f"{peak} bytes are needed of {ceiling}")
    return peak


def ran_out(error: BaseException) -> bool:
    """Is this how PyTorch and NumPy say that there is no memory left, on any device?"""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(
        error
    )


def readable(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def give_back() -> None:
    """Freed memory back to the system, where glibc keeps it: what is kept of a picture lies scattered behind what was
    large and is gone, so without this an evaluation of masks grows by megabytes a picture. Takes a millisecond."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], object] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None
