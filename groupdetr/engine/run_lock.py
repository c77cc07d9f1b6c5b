"""The lock of a run folder: only one training at a time writes to it.

The file ``.lock`` in the folder names the host and the process. While the training lives, it
touches the file every few seconds. A lock that is left by a process that was killed is recognised:
on the same host by the process, on another host because the file is no longer touched.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from groupdetr.console.text import quote
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.files.writing import explained
from groupdetr.structures.json_object import JsonObject

TOUCH_SECONDS = 5.0
WATCH_SECONDS = 20.0  # how long the lock of another host is watched for a sign of life
CLOCK_TOLERANCE = 2.0  # seconds between two readings of the start time of one process


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the lock of a run folder inside the ``with`` block.

    What a process has left unfinished that was killed is removed first, because it may fill the
    disk. `UsageError` if another process works in this folder.
    """
    expect_unlocked(run)
    run.clean()
    with explained(run.lock):
        run.path.mkdir(parents=True, exist_ok=True)
        _create(run)
    ended = threading.Event()
    thread = threading.Thread(target=_touch, args=(run.lock, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _owner(run.lock) == _self():
            with suppress(OSError):
                run.lock.unlink()


def expect_unlocked(run: RunFolder) -> None:
    """Raise `UsageError` if another process that is alive works in this folder."""
    owner = _owner(run.lock)
    if owner is not None and owner != _self() and _is_alive(run.lock, owner):
        raise in_use_error(run, owner)


def in_use_error(run: RunFolder, owner: JsonObject) -> UsageError:
    """Return the error for a folder that another process works in."""
    return UsageError(
        f"another training works in this folder: process {owner['pid']} on {owner['host']}",
        str(run.path),
        "wait until it ends, or stop it; if it does not exist, remove the lock: "
        f"rm {quote(run.lock)}",
    )


def _create(run: RunFolder) -> None:
    """Create the lock. `UsageError` if another process was faster."""
    for _ in range(100):
        try:
            descriptor = os.open(run.lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            expect_unlocked(run)
            # It is stale, or damaged.
            run.lock.unlink(missing_ok=True)
            continue
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(_self()).encode())
        except OSError:
            run.lock.unlink(missing_ok=True)
            raise
        return
    raise UsageError("the lock of this folder cannot be created", str(run.lock))


def _self() -> JsonObject:
    pid = os.getpid()
    try:
        started = round(psutil.Process(pid).create_time(), 2)
    except psutil.Error:  # a container of Linux in which /proc is not mounted
        started = 0.0
    return {"host": socket.gethostname(), "pid": pid, "started": started}


def _owner(lock: Path) -> JsonObject | None:
    """Return the process that a lock names, None if there is no lock, or none that can be read."""
    for _ in range(10):
        try:
            content = json.loads(lock.read_text(encoding="utf-8"))
            return {
                "host": str(content["host"]),
                "pid": int(content["pid"]),
                "started": float(content["started"]),
            }
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            # Another process may have created it a moment ago, and not have written it yet.
            time.sleep(0.02)
    return None


def _is_alive(lock: Path, owner: JsonObject) -> bool:
    """True if the process that holds a lock is alive."""
    if owner["host"] != socket.gethostname():
        return _is_touched(lock)
    try:
        process = psutil.Process(owner["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # Another process may have the same number now.
        return abs(process.create_time() - owner["started"]) < CLOCK_TOLERANCE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _is_touched(lock: Path) -> bool:
    """True if a lock is touched while it is watched. No clock of another host is compared."""
    try:
        first = _touched_at(lock)
        last_time = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < last_time:
            time.sleep(min(0.5, WATCH_SECONDS / 4))
            if _touched_at(lock) != first:
                return True
    except FileNotFoundError:
        return False
    return False


def _touched_at(lock: Path) -> int:
    """Return when a lock was touched last. It is opened, because network file systems cache it."""
    with lock.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _touch(lock: Path, ended: threading.Event) -> None:
    """Touch a lock every few seconds, until the training ends."""
    while not ended.wait(TOUCH_SECONDS):
        with suppress(OSError):
            os.utime(lock)
