"""Failures of the worker processes that load images, and what a user can do about them.

PyTorch reports them in its own words, at any moment of a training. Here they are noticed only while
a batch is waited for, so that a step is never left half done.
"""

from __future__ import annotations

import atexit
import errno
import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any
from weakref import WeakSet

from torch import Tensor

from groupdetr.console.text import quantity

SIGCHLD = 0  # the signal that a process has ended, which Windows does not have
if sys.platform != "win32":
    SIGCHLD = signal.SIGCHLD

_logger = logging.getLogger("groupdetr")

SHARED_MEMORY = "the shared memory of this machine (/dev/shm) is too small"
_KILLED = "a process that loads images was ended by the system, usually because memory ran out"
_ENDED = "a process that loads images ended unexpectedly"
_OPEN_FILES = "there are too many open files (ulimit -n)"
_NOT_STARTED = "the processes that load images could not be started"
_LOADERS = ("loader process", "loader processes")
_SHUT_DOWN_SECONDS = 30.0  # that workers have to end, after one of them has failed


@dataclass(frozen=True)
class WorkerFailure:
    """That worker processes cannot go on. It is returned, and not raised."""

    reason: str  # a sentence without its full stop


def share_tensors(value: object) -> None:
    """Move the tensors of a batch to shared memory, before it is sent to another process.

    Otherwise this happens in a thread of PyTorch. If that fails, the batch is lost, and the
    training waits for it for ever. `RuntimeError` or `OSError` if there is too little memory.
    """
    if isinstance(value, Tensor):
        value.share_memory_()
    elif isinstance(value, list | tuple):
        for item in value:
            share_tensors(item)
    elif isinstance(value, dict):
        share_tensors(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        share_tensors(value.__getstate__())  # what pickle sends of the object


def is_out_of_shared_memory(error: RuntimeError | OSError) -> bool:
    """True if a worker could not get shared memory for a batch."""
    text = str(error)
    is_full = "No space left on device" in text or getattr(error, "errno", 0) == errno.ENOSPC
    return is_full or "shared memory" in text


def explain(error: RuntimeError | OSError | EOFError, iterator: object) -> WorkerFailure | None:
    """Return why worker processes cannot go on; None for an error of any other cause.

    ``error`` was raised while the ``iterator`` of a data loader was created, or while a batch was
    waited for.
    """
    text = f"{error} {error.__cause__}"
    if "in DataLoader worker process" in text:
        return None  # an error of the dataset
    if "Too many open files" in text or "ancdata" in text:
        return WorkerFailure(_OPEN_FILES)
    ended_by = {-worker.exitcode for worker in _workers(iterator) if worker.exitcode}
    is_full = isinstance(error, RuntimeError | OSError) and is_out_of_shared_memory(error)
    if is_full or getattr(signal, "SIGBUS", None) in ended_by:
        return WorkerFailure(SHARED_MEMORY)
    if getattr(signal, "SIGKILL", None) in ended_by:
        return WorkerFailure(_KILLED)
    if iterator is None and isinstance(error, OSError):
        return WorkerFailure(_NOT_STARTED)
    # The connection to a process that ended cannot be opened or breaks off.
    if "DataLoader worker (pid" in text or isinstance(error, OSError | EOFError):
        return WorkerFailure(_ENDED)
    return None


def _workers(iterator: object) -> list[BaseProcess]:
    """Return the worker processes of the iterator of a data loader, if it has any."""
    return list(getattr(iterator, "_workers", []))


def shut_down(iterator: object, have_failed: bool = False) -> None:
    """End the workers of a data loader's iterator, at once if they ``have_failed``.

    A process that was killed while it sent a batch may leave PyTorch's threads, and other workers,
    waiting for ever. So the waiting has an end here.
    """
    workers = _workers(iterator)
    if have_failed:
        _kill(workers)
    function = getattr(iterator, "_shutdown_workers", None)
    if function is not None:
        thread = threading.Thread(target=function, daemon=True)
        try:
            thread.start()
            thread.join(_SHUT_DOWN_SECONDS)
        except RuntimeError:
            # This process ends, and starts no more threads.
            pass
    # The signal by which PyTorch ends workers in the end is one that they ignore.
    _kill(workers)


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join(1.0)


_started: WeakSet[BaseProcess] = WeakSet()  # all worker processes that may still run


def end_workers_at_exit(iterator: object) -> None:
    """End the worker processes of a data loader's iterator at the latest when this process ends.

    They ignore the signal by which Python ends its child processes, and it would wait for them for
    ever.
    """
    _started.update(_workers(iterator))


@atexit.register
def _end_workers() -> None:
    _kill(_started)


def log_fewer_workers(reason: str, former: int, workers: int) -> None:
    """Log one line: why there are ``workers`` now and no longer ``former``, and what avoids it."""
    remedy = f"--workers {workers} avoids this"
    if reason == SHARED_MEMORY:
        remedy += ", and so does more shared memory (Docker: --shm-size 2g)"
    _logger.warning(
        "%s: images are loaded by %s now, instead of %s; %s",
        reason,
        quantity(workers, *_LOADERS) if workers else "this process itself",
        quantity(former, *_LOADERS),
        remedy,
    )


class _WorkerExitHandler:
    """Handles the signal that a process has ended, once PyTorch's data loader handles it, too.

    PyTorch raises an error at once, wherever the training is: in the middle of a step, when some
    parameters have changed and others have not. Here it is called only while a batch is waited for.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.torch_handler: Any = None
        self.former_handler: Any = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.waiting:
            self.torch_handler(number, frame)
        elif callable(self.former_handler):
            self.former_handler(number, frame)

    def take_over(self, before: Any) -> None:
        """Take the place of PyTorch's handler, if it has replaced the handler ``before``."""
        after = signal.getsignal(SIGCHLD)
        if after is not before and after is not self and callable(after):
            self.torch_handler, self.former_handler = after, before
            signal.signal(SIGCHLD, self)

    def missed_error(self) -> RuntimeError | None:
        """Return the error of a worker that ended while no batch was waited for, if there is one.

        It may be a worker of any data loader, and is returned once.
        """
        if self.torch_handler is None:
            return None
        try:
            self.torch_handler(SIGCHLD, None)
        except RuntimeError as error:
            return error
        return None


_handler = _WorkerExitHandler()


def raise_missed_error(iterator: object) -> None:
    """Raise the error of a worker of a data loader's ``iterator`` that ended before.

    A worker of another data loader is left to that loader, which looks every five seconds.
    """
    error = _handler.missed_error()
    if error is not None and not all(worker.is_alive() for worker in _workers(iterator)):
        raise error


@contextmanager
def noticed_while_waiting() -> Iterator[None]:
    """While a batch is waited for, raise PyTorch's `RuntimeError` if a worker process ends.

    At any other time, the end of a worker process raises no error.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if sys.platform == "win32" or not in_main_thread:
        # There is no such signal, or it cannot be handled here: PyTorch looks every five seconds.
        yield
        return
    before = signal.getsignal(SIGCHLD)
    _handler.waiting = True
    try:
        yield
    finally:
        _handler.waiting = False
        _handler.take_over(before)
