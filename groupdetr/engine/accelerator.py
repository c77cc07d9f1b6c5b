"""Devices, processes, processor cores and versions of the machine."""

from __future__ import annotations

import atexit
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import AutocastKwargs

from groupdetr.data.processor_cores import cores
from groupdetr.engine.precision import Precision, resolve_precision
from groupdetr.errors import CallbackError, GroupDETRError, UsageError
from groupdetr.settings import Settings
from groupdetr.structures.json_object import JsonObject

# Packages whose versions are recorded with every run.
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
    "hotcoco",
)


def loader_workers(workers: int | None) -> int:
    """Return the number of processes that load images, for each process that trains.

    ``workers`` is that of `Settings`; None chooses it by the number of processor cores.
    """
    if workers is not None:
        return workers
    training_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # There may be more processes than cores.
    return max(0, min(8, cores() // training_processes - 1))


def devices() -> list[str]:
    """Return the kinds of devices of this machine."""
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return [name for name, is_available in available.items() if is_available]


def expect_device(name: str) -> None:
    """Raise `UsageError` unless this machine has a device of this kind, or the name is auto."""
    if name not in ("auto", *devices()):
        raise UsageError(
            f"this machine has no device {name!r}",
            remedy=f"choose --device from: auto, {', '.join(devices())}",
        )


def create_accelerator(settings: Settings) -> Accelerator:
    """Return the accelerator: the device, the precision and the processes of a training.

    There are several processes if ``torchrun`` or ``accelerate launch`` started the program. They
    stay connected until the program ends, so that it may train several times: what a launcher
    stores of a connection does not serve for a second one. `GroupDETRError` if they were
    disconnected after an error.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    expect_device(settings.device)
    is_connected = torch.distributed.is_initialized()
    if PartialState._shared_state.get("num_processes", 1) > 1 and not is_connected:
        raise GroupDETRError(
            "the processes of this program were disconnected by an error, and cannot be connected "
            "a second time",
            remedy="start the program again; a run that was stopped can be resumed",
        )
    # Without this, a second training in one process would have the device and the precision of the
    # first one. Processes that are connected keep their devices.
    AcceleratorState._reset_state(reset_partial_state=not is_connected)
    on_cpu = settings.device == "cpu" or devices() == ["cpu"]
    on_gpu = not on_cpu and torch.cuda.is_available()
    precision = resolve_precision(settings.precision, on_gpu)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.distributed.is_available():
        # Defaults of its functions are the group of processes at the time of the import. If it were
        # first imported while they are connected, which DistributedDataParallel does, that group
        # and gloo's threads would outlive `disconnect`.
        import_module("torch.distributed.nn")
    # The cache of autocast keeps a copy in bf16 of all weights until the end of the forward pass.
    # With FSDP no process should have all weights.
    autocast = AutocastKwargs(cache_enabled=not settings.fsdp)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[autocast],
    )
    if accelerator.num_processes > 1:
        # A process that ends while it is connected may be aborted by gloo's threads.
        atexit.unregister(disconnect)
        atexit.register(disconnect)
    return accelerator


def create_single_accelerator(device: str, precision: Precision = "fp32") -> Accelerator:
    """Return the accelerator of a computation that one process does alone, such as an evaluation.

    ``device`` is auto, cpu, cuda or mps. `UsageError` if a launcher has started several processes.
    They would share the images, and only the first one would have all results.
    """
    accelerator = create_accelerator(Settings(device=device, precision=precision))
    if accelerator.num_processes > 1:
        raise UsageError(
            "only a training is shared by several processes, and a launcher started "
            f"{accelerator.num_processes} of this program",
            remedy="do this in another program, without torchrun; the result of a training has the "
            "metrics of its best evaluation",
        )
    return accelerator


@contextmanager
def restore_threads() -> Iterator[None]:
    """Let PyTorch compute with as many threads after this context as before it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def disconnect() -> None:
    """Leave the other processes of this program, if there are any."""
    if torch.distributed.is_initialized():
        # It leaves alone what a notebook has started, which Accelerate's launcher ends.
        PartialState().destroy_process_group()


@contextmanager
def disconnect_after_error() -> Iterator[None]:
    """Leave the other processes after an error, so that they do not wait for this one.

    After an error of a callback they stay connected, because usually all of them know of it.
    """
    try:
        yield
    except CallbackError:
        raise
    except BaseException:
        disconnect()
        raise


def is_main_process() -> bool:
    """Return True in the one process that prints and writes files.

    It is also True if no accelerator was created, because then there are no other processes.
    """
    return not PartialState._shared_state or bool(PartialState().is_main_process)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: of tensors on the device if it is a GPU, else of this process.

    Of a GPU, it is the peak since `reset_peak_memory`. That of a process cannot be reset.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _peak_process_memory() / 2**20


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak memory of tensors on a GPU.

    It may be that of an earlier training in this process, or of steps that `fit_to_memory` tried.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_process_memory() -> int:
    """Return the peak of this process's resident memory in bytes; 0 if no way of measuring works.

    A measurement must never end an evaluation.
    """
    # Imported here, because psutil itself needs modules that a system may lack.
    with suppress(ImportError, OSError):
        if sys.platform == "win32":
            import psutil

            return int(psutil.Process().memory_info().peak_wset)
        # On Linux, getrusage may also count the memory of the parent process; VmHWM does not.
        status = Path("/proc/self/status")
        text = ""
        with suppress(OSError):  # macOS, BSD, and containers of Linux without a readable /proc
            text = status.read_text(encoding="utf-8")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 2**10
        if sys.platform != "win32" and not text:
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 2**10
    with suppress(ImportError, OSError):
        # Some sandboxes of Linux do not report the peak.
        import psutil

        with suppress(psutil.Error):
            return int(psutil.Process().memory_info().rss)
    return 0


def environment() -> JsonObject:
    """Return what a result depends on besides the code: machine, package versions, command."""
    gpus = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "packages": {name: _version(name) for name in PACKAGES},
        "command": command_line(),
    }


def command_line() -> str:
    """Return the command of this process, as a user types it in a shell.

    Results are published with it, so it does not say where the library is installed.
    """
    program = Path(sys.argv[0]).name
    if program == "__main__.py":  # python -m groupdetr
        program = "groupdetr"
    return shlex.join([program, *sys.argv[1:]])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
