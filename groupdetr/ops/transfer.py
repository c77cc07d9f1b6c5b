"""Copies between the host and a GPU, through pinned memory."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Return ``x`` on ``device``. Nothing waits for work that is queued on a GPU.

    A copy from the host to a GPU is asynchronous only if the memory of the host is pinned. Small
    tensors that are made in a step are not, so they are copied to pinned memory first, which
    PyTorch keeps and uses again.
    """
    is_copied_to_gpu = x.device.type == "cpu" and torch.device(device).type == "cuda"
    if is_copied_to_gpu and not torch.compiler.is_compiling() and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def to_host(x: Tensor) -> Tensor:
    """Return ``x`` on the host. On a GPU it waits for the work that ``x`` is the result of."""
    host, copied = start_copy_to_host(x)
    if copied is not None:
        copied.synchronize()
    return host


def start_copy_to_host(x: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Return a tensor on the host, and the event after which it has the values of ``x``.

    A GPU copies them when it has computed ``x``, and the host does not wait. The event is None if
    ``x`` is on another device: then the tensor has the values already.

    The copy goes to pinned memory, which PyTorch keeps and uses again. A copy to other memory would
    be divided into parts that go through a small pinned buffer, one after the other.
    """
    if not x.is_cuda:
        return x.cpu(), None
    host = x.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(x.device))
    return host, copied
