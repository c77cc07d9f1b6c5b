"""The lock of a run folder: only one training at a time writes to it.

The file ``.lock`` in the folder names the machine and the process. While the training lives, it
touches the file every few seconds. A lock that is left by a process that was killed is recognised:
on the same machine by the process, elsewhere because the file is no longer touched. No decision
depends on the time of day, which may change while a training runs and differs between machines.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil

from groupdetr.console.text import escape_controls
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import UsageError
from groupdetr.files.writing import explained
from groupdetr.structures.json_object import JsonObject

TOUCH_SECONDS = 5.0
WATCH_SECONDS = 20.0  # how long a lock is watched for a sign of life, if its process is not known
REPLACED_SECONDS = 0.3  # after this time, a lock that took the place of another one is read again
START_TOLERANCE = 1.0  # seconds between two readings of the start of one process
UNKNOWN_START = -1.0  # where the system does not report when a process started
# Systems on which `_start_of` returns the same also after the clock was changed.
STEADY_STARTS = ("linux", "win32")

_logger = logging.getLogger("groupdetr")
_held: set[Path] = set()  # folders whose locks this process holds


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the lock of a run folder inside the ``with`` block.

    What a process has left unfinished that was killed is removed first, because it may fill the
    disk. `UsageError` if another process works in this folder, or another thread of this one.
    """
    own = _self()
    folder = run.path.resolve()
    if folder in _held:
        raise in_use_error(run, own)
    stale = _stale_owner(run, own)
    run.clean()
    with explained(run.lock):
        run.path.mkdir(parents=True, exist_ok=True)
        _create(run, own, stale)
    ended = threading.Event()
    thread = threading.Thread(target=_touch, args=(run.lock, ended), daemon=True)
    try:
        _held.add(folder)
        thread.start()
        yield
    finally:
        ended.set()
        if thread.is_alive():
            thread.join()
        _held.discard(folder)
        with suppress(OSError, UsageError):
            # The user may have deleted it, and then another training may hold it now.
            if _owner(run.lock) == own:
                run.lock.unlink()


def in_use_error(run: RunFolder, owner: JsonObject) -> UsageError:
    """Return the error for a folder that another training works in."""
    return UsageError(
        f"another training works in this folder: process {owner['pid']} on {owner['host']}",
        str(run.path),
        "wait until it ends, or stop it; if there is no such process, delete the file "
        f"{run.lock} and start again",
    )


def _stale_owner(run: RunFolder, own: JsonObject) -> JsonObject | None:
    """Return the process that a stale lock names. None if there is no lock, or a damaged one.

    `UsageError` if the process is alive.
    """
    owner = _owner(run.lock)
    if owner is not None and owner != own and _is_alive(run.lock, owner, own):
        raise in_use_error(run, owner)
    return owner


def _create(run: RunFolder, own: JsonObject, stale: JsonObject | None) -> None:
    """Create the lock. It takes the place of a damaged one, and of one that names ``stale``.

    `UsageError` if another process was faster.
    """
    replaces = False
    for _ in range(100):
        try:
            descriptor = os.open(run.lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if _owner(run.lock) == stale:
                run.lock.unlink(missing_ok=True)
                replaces = True
            else:
                # Another process has created it in the meantime.
                stale = _stale_owner(run, own)
            continue
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(own).encode())
        except OSError:
            run.lock.unlink(missing_ok=True)
            raise
        if not replaces:
            return
        # Two processes may have found the same stale lock. The slower one removes the lock of the
        # faster one instead, and then only the slower one finds its own lock here.
        time.sleep(REPLACED_SECONDS)
        stale = _stale_owner(run, own)
        if stale == own:
            return
    raise UsageError("the lock of this folder cannot be created", str(run.lock))


# which process holds a lock


def _self() -> JsonObject:
    """Return the content of a new lock of this process. No other lock is equal to it."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "token": uuid4().hex,
    }


def _machine() -> str:
    """Return what distinguishes machines and containers of the same name.

    It is an empty text on systems other than Linux.
    """
    try:
        # It is another one after every start of the machine.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        # In two containers, one number means two processes.
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> float:
    """Return when a process started, in seconds. `UNKNOWN_START` if the system does not report it.

    On Linux, the time is that since the start of the machine: the time of day of the start changes
    when somebody corrects the clock. `psutil.NoSuchProcess` if there is no such process.
    """
    if not _exists(pid):
        raise psutil.NoSuchProcess(pid)
    try:
        # This comes first, because some versions of psutil use it again for the next line.
        boot = psutil.boot_time() if sys.platform == "linux" else 0.0
        return round(psutil.Process(pid).create_time() - boot, 2)
    except (psutil.Error, OSError):
        # The process may have ended just now. Else it is a process of another user, or a container
        # of Linux in which /proc is not mounted.
        if not _exists(pid):
            raise psutil.NoSuchProcess(pid) from None
        return UNKNOWN_START


def _exists(pid: int) -> bool:
    """True if there is a process with this number. It may be a zombie."""
    try:
        return psutil.pid_exists(pid)
    except FileNotFoundError:
        # psutil found it, and then looked for it in /proc, which is not mounted.
        return True


def _owner(lock: Path) -> JsonObject | None:
    """Return the process that a lock names, None if there is no lock, or a damaged one.

    `UsageError` if the lock cannot be read, for example because another user has created it.
    """
    reason = None
    for _ in range(10):
        try:
            content = json.loads(lock.read_text(encoding="utf-8"))
            pid = int(content["pid"])
            if not 0 < pid < 2**31:
                return None
            return {
                "host": escape_controls(str(content["host"])),
                "machine": str(content["machine"]),
                "pid": pid,
                "started": float(content["started"]),
                "token": str(content["token"]),
            }
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            # Another process may have created it a moment ago, and not have written it yet.
            reason = None
        time.sleep(0.02)
    if reason is not None:
        raise UsageError(
            f"the lock of this folder cannot be read, so another training may work in it: {reason}",
            str(lock),
            "choose another folder; or if no training works in this one, delete the lock",
        )
    return None


def _is_alive(lock: Path, owner: JsonObject, own: JsonObject) -> bool:
    """True if the process that holds a lock is alive. ``own`` is a lock of this process."""
    if (owner["host"], owner["machine"]) != (own["host"], own["machine"]):
        return _is_touched(lock, owner)
    if owner["pid"] == own["pid"]:
        # This process does not hold it. One with the same number did, before a container or a
        # machine was started again.
        return False
    try:
        started = _start_of(owner["pid"])
        if _is_zombie(owner["pid"]):
            return False
    except psutil.NoSuchProcess:
        return False
    if UNKNOWN_START not in (started, owner["started"]):
        if abs(started - owner["started"]) < START_TOLERANCE:
            return True
        if sys.platform in STEADY_STARTS:
            # Another process has the same number now.
            return False
    return _is_touched(lock, owner)


def _is_zombie(pid: int) -> bool:
    """True if a process has ended, and only its parent has not noticed yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except (psutil.Error, OSError):
        return False


def _is_touched(lock: Path, owner: JsonObject) -> bool:
    """True if a lock is touched while it is watched.

    The times of the file are only compared with each other, so that it does not matter which clock
    they are from, and whether it is right.
    """
    _logger.warning(
        "process %d on %s may work in this folder; watching its lock for up to %.0f s: %s",
        *(owner["pid"], owner["host"], WATCH_SECONDS, escape_controls(str(lock))),
    )
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
