"""A program that trains, and sends a signal to itself in the middle of a save or an evaluation.

Its arguments are the moment ("save" or "evaluation"), how many of them are left alone, how much of
the next one is done before the signal is sent (0 to 1), the name of the signal, and then those of
`groupdetr`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from groupdetr.checkpoints.checked_file import _HashingFile
from groupdetr.cli.main import main
from groupdetr.engine.trainer import Trainer


def kill_in_a_save(number: signal.Signals, skipped: int, fraction: float) -> None:
    """Send a signal before an operation on a file, while last.pt is written.

    A ``fraction`` below one half chooses among all of them, one above it among those after the
    content was written: it reaches the disk, and the files change their names.
    """
    saves: list[list[str]] = []  # the operations of every save
    is_saving = False

    def counted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if is_saving:
                if len(saves) == skipped + 1 and len(saves[-1]) == position():
                    os.kill(os.getpid(), number)
                saves[-1].append(name)
            return function(*arguments, **keywords)

        return call

    def position() -> int:
        # A former save also removes the link of the one before it.
        former = saves[-2]
        if fraction < 0.5:
            return int(2 * fraction * len(former))
        after = former.count("write")
        return after + int((2 * fraction - 1) * (len(former) - after))

    write_checkpoint = Trainer.write_checkpoint

    def save(self: Trainer) -> None:
        nonlocal is_saving
        saves.append([])
        is_saving = True
        try:
            write_checkpoint(self)
        finally:
            is_saving = False

    Trainer.write_checkpoint = save  # type: ignore[method-assign]
    _HashingFile.write = counted(_HashingFile.write, "write")  # type: ignore[method-assign]
    for name in ("fsync", "link", "replace"):
        setattr(os, name, counted(getattr(os, name), name))


def kill_in_an_evaluation(number: signal.Signals, skipped: int, fraction: float) -> None:
    """Send a signal during an evaluation, which takes about as long as the one before it."""
    evaluate = Trainer.evaluate
    durations: list[float] = []

    def disturbed(self: Trainer, network: Any) -> None:
        if len(durations) == skipped:
            delay = fraction * durations[-1]
            threading.Timer(delay, os.kill, (os.getpid(), number)).start()
        started = time.monotonic()
        evaluate(self, network)
        durations.append(time.monotonic() - started)

    Trainer.evaluate = disturbed  # type: ignore[method-assign]


if __name__ == "__main__":
    moment, left_alone, part, name, *options = sys.argv[1:]
    kill = {"save": kill_in_a_save, "evaluation": kill_in_an_evaluation}[moment]
    kill(signal.Signals[name], int(left_alone), float(part))
    raise SystemExit(main(options))
