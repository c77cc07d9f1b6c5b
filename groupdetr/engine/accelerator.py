"""The machine: devices, cores, memory and versions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from groupdetr.errors import UsageError
from groupdetr.settings import Settings

PACKAGES = (
    "groupdetr",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "scipy",
    "lapx",
    "numpy",
    "pillow",
    "simplejpeg",
    "faster-coco-eval",
)


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_workers(settings: Settings) -> int:
    """Processes that load images, for each process that trains."""
    if settings.workers is not None:
        return settings.workers
    return min(8, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def devices() -> list[str]:
    """Kinds of devices that are here."""
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return [name for name, there in available.items() if there]


def expect_device(name: str) -> None:
    if name not in ("auto", *devices()):
        known = ", ".join(devices())
        raise UsageError(
            f"there is no device {name!r} here", remedy=f"choose --device from: auto, {known}"
        )


def accelerator(settings: Settings) -> Accelerator:
    """The device and processes that ``torchrun``, ``accelerate launch`` or a plain start gave us."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    expect_device(settings.device)
    AcceleratorState._reset_state()  # else a second run in this process could not have another precision
    on_cpu = settings.device == "cpu" or devices() == ["cpu"]
    return Accelerator(cpu=on_cpu, mixed_precision="bf16" if settings.precision == "bf16" else "no")


def peak_memory_mb() -> float:
    """The most memory held at once: by tensors on the GPU where there is one, else by this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # unlike getrusage, it does not count what the parent process held
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "packages": {name: _version(name) for name in PACKAGES},
        "command": " ".join(sys.argv),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
