"""The precision of a computation: fp32, bf16, or the faster of both on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator

from groupdetr.errors import UsageError

Precision = Literal["fp32", "bf16"]
CHOICES = ("fp32", "bf16", "auto")
MIN_SPEED_UP = 1.1  # of bf16, for which `choose_precision` accepts slightly different results
ROUNDS = 3  # of a measurement, after one to warm up


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision that was chosen, and how many times as fast as fp32 bf16 was measured."""

    precision: Precision
    speed_up: float

    def __str__(self) -> str:
        result = "it is used" if self.precision == "bf16" else "fp32 is used"
        return f"precision: bf16 takes {1 / self.speed_up:.2f} of the time of fp32, so {result}"


def expect_precision(precision: str) -> None:
    """Raise `UsageError` unless this is one of `CHOICES`."""
    if precision not in CHOICES:
        raise UsageError(
            f"there is no precision {precision!r}",
            remedy=f"choose from: {', '.join(CHOICES)}",
        )


@contextmanager
def in_precision(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute matrix products and convolutions of a forward pass in this precision.

    On a GPU, what stays in fp32 uses TF32 with bf16, and not with fp32, as in `tf32_of`.
    """
    in_bf16 = precision == "bf16"
    with (
        tf32(in_bf16) if device.type == "cuda" else nullcontext(),
        torch.autocast(device.type, torch.bfloat16, enabled=in_bf16),
    ):
        yield


def resolve_precision(precision: Literal["auto", "fp32", "bf16"], on_gpu: bool) -> Precision:
    """Return the precision that ``--precision`` chooses, given whether the device is a GPU.

    A GPU that only emulates bf16 has fp32 by default, and so has a CPU: with small models, bf16
    takes longer there.
    """
    if precision != "auto":
        return precision
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def tf32_of(accelerator: Accelerator) -> AbstractContextManager[None]:
    """Return a context in which a GPU uses TF32 for what stays in fp32, or not.

    It uses TF32 if the precision of the accelerator is bf16. Whatever runs a network by an
    accelerator, forward or backward, runs it in this context.
    """
    if accelerator.device.type != "cuda":
        return nullcontext()
    return tf32(accelerator.mixed_precision == "bf16")


@contextmanager
def tf32(is_allowed: bool) -> Iterator[None]:
    """Let matrix products and convolutions in fp32 use TF32 on a GPU in this context, or not.

    TF32 has the range of fp32 and ten bits of its mantissa. PyTorch has one setting for the whole
    process. After the context it is what it was before.
    """
    # PyTorch has two interfaces for this setting. The older one cannot be read any more if the
    # program has used the newer one, which can always be read and written.
    matmul: str | None = None
    cudnn: bool | None = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    backends: Any = torch.backends
    operations = (
        backends.cuda.matmul,
        backends.mkldnn.matmul,  # `torch.set_float32_matmul_precision` sets it, too
        backends.cudnn.conv,
        backends.cudnn.rnn,
    )
    before = [operation.fp32_precision for operation in operations]
    torch.set_float32_matmul_precision("high" if is_allowed else "highest")
    torch.backends.cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for operation, precision in zip(operations, before):
            operation.fp32_precision = precision


def choose_precision(run: Callable[[], object], device: torch.device) -> PrecisionChoice:
    """Run a network with both precisions in turns, and choose bf16 if it is clearly faster.

    Not every processor has instructions for bf16. Without them it is slower than fp32.
    """

    def run_in(precision: Precision) -> None:
        with in_precision(device, precision):
            run()

    speed_up = 1 / bf16_time(run_in, device)
    return PrecisionChoice("bf16" if speed_up >= MIN_SPEED_UP else "fp32", speed_up)


def bf16_time(run: Callable[[Precision], object], device: torch.device) -> float:
    """Return the time of ``run("bf16")`` on a device, divided by that of ``run("fp32")``.

    Both run in turns, and the result is the median of the ratios of all rounds. The first round
    does not count: it is slower, because it allocates memory and chooses kernels.
    """
    ratios = []
    for _ in range(1 + ROUNDS):
        fp32 = _seconds(lambda: run("fp32"), device)
        bf16 = _seconds(lambda: run("bf16"), device)
        ratios.append(bf16 / fp32)
    return statistics.median(ratios[1:])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return how long a run takes. On a CPU it is process time, as others may share the CPU."""
    clock = time.process_time
    if device.type != "cpu":
        clock = time.perf_counter
        getattr(torch, device.type).synchronize()
    start = clock()
    run()
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return clock() - start
