"""The lock of a run folder: one training at a time, and a lock that was left behind is no lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from groupdetr.engine import run_lock
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.run_lock import locked
from groupdetr.errors import UsageError


def lock_with(**changes: Any) -> str:
    """Return the content of a lock of this process, with some changes."""
    return json.dumps({**run_lock._self(), **changes})


def write_lock(run: RunFolder, **changes: Any) -> None:
    """Write the lock of this process, with some changes."""
    run.lock.write_text(lock_with(**changes))


@contextmanager
def touched(lock: Path) -> Iterator[None]:
    """Touch a lock all the time, as the process does that holds it.

    It is then watched for a long time, because this machine may be busy.
    """
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.05):
            os.utime(lock)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_lock, "WATCH_SECONDS", 600)
            yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def other_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits. Locks are watched for less than a second."""
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.8)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_folder_in_which_another_process_works_is_refused_and_its_drafts_stay(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        write_lock(run, pid=process.pid, started=run_lock._start_of(process.pid))
        draft = tmp_path / f".log.jsonl.{process.pid}.part"
        draft.touch()
        with pytest.raises(UsageError, match=f"process {process.pid} on ") as refused, locked(run):
            pass
        assert draft.exists()
        assert str(run.lock) in refused.value.remedy
        process.communicate(b"\n")
    with locked(run):
        assert not draft.exists()
        assert json.loads(run.lock.read_text())["pid"] == os.getpid()
    assert not run.lock.exists()


def test_another_process_with_the_number_of_the_former_one_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        write_lock(run, pid=process.pid, started=1.0)
        with locked(run):
            pass
        process.communicate(b"\n")


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_process_on_another_host_is_alive_if_it_touches_its_lock(
    is_alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.8)
    run = RunFolder(tmp_path)
    write_lock(run, host="another")
    if is_alive:
        with touched(run.lock), pytest.raises(UsageError, match="on another"), locked(run):
            pass
    else:
        with locked(run):
            pass


def test_a_damaged_lock_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "REPLACED_SECONDS", 0.0)
    run = RunFolder(tmp_path)
    for content in (
        *("", "{}", "[1]", '{"pid": null}', "[" * 100_000),
        *(lock_with(pid=pid) for pid in (-1, 0, 2**70, float("inf"), float("nan"), "none")),
    ):
        run.lock.write_text(content)
        with locked(run):
            assert json.loads(run.lock.read_text())["pid"] == os.getpid()


def test_a_lock_that_cannot_be_read_is_respected(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock.mkdir()
    with pytest.raises(UsageError, match="cannot be read") as refused, locked(run):
        pass
    assert "delete the lock" in refused.value.remedy
    assert run.lock.exists()


def test_two_threads_of_a_process_do_not_work_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with locked(RunFolder(tmp_path)):
        for path in (tmp_path, tmp_path / "weights" / ".."):
            with pytest.raises(UsageError, match="another training works"), locked(RunFolder(path)):
                pass
    with locked(RunFolder(tmp_path)):
        pass


# systems that know less, and clocks that are wrong


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no /proc")
def test_where_proc_is_not_mounted_a_live_process_keeps_its_lock(
    other_process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    write_lock(run, pid=other_process.pid)
    assert json.loads(run.lock.read_text())["started"] == run_lock.UNKNOWN_START
    with (
        touched(run.lock),
        pytest.raises(UsageError, match=f"process {other_process.pid} "),
        locked(run),
    ):
        pass
    # Another process may have this number now, because this one does not touch the lock.
    with locked(run):
        pass
    other_process.kill()
    other_process.wait()
    write_lock(run, pid=other_process.pid)
    monkeypatch.setattr(run_lock, "_is_touched", None)
    with locked(run):
        pass


def test_a_process_with_this_number_in_another_container_keeps_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers with the network of their machine have its name, and processes of any number."""
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.8)
    run = RunFolder(tmp_path)
    write_lock(run, machine="another container")
    with touched(run.lock), pytest.raises(UsageError, match="another training"), locked(run):
        pass
    with locked(run):
        pass


@pytest.mark.parametrize("shift", [-7200.0, 7200.0])
def test_a_clock_that_is_changed_makes_no_live_lock_stale(
    shift: float,
    other_process: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Linux computes the time of day of the start of a process from the clock as it is now."""
    run = RunFolder(tmp_path)
    write_lock(run, pid=other_process.pid, started=run_lock._start_of(other_process.pid))
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    if sys.platform.startswith("linux"):
        monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + shift)
        monkeypatch.setattr(
            psutil.Process, "create_time", lambda process: create_time(process) + shift
        )
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(UsageError, match="another training"), locked(run):
        pass


def test_a_system_on_which_starts_change_with_the_clock_watches_the_lock(
    other_process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "STEADY_STARTS", ())
    run = RunFolder(tmp_path)
    write_lock(run, pid=other_process.pid, started=1.0)
    with touched(run.lock), pytest.raises(UsageError, match="another training"), locked(run):
        pass
    with locked(run):
        pass


@pytest.mark.parametrize("is_alive", [True, False])
def test_the_time_of_a_lock_in_the_future_means_nothing(
    is_alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.8)
    run = RunFolder(tmp_path)
    write_lock(run, host="another")
    in_a_year = time.time() + 365 * 86400
    os.utime(run.lock, (in_a_year, in_a_year))
    if is_alive:
        with touched(run.lock), pytest.raises(UsageError, match="on another"), locked(run):
            pass
    else:
        with locked(run):
            pass


def test_of_two_processes_that_find_a_stale_lock_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have decided that it is stale. The slower one then removes that of the faster one."""
    run = RunFolder(tmp_path)
    write_lock(run, pid=2**22 + 1)
    stale, other = run_lock._owner(run.lock), {**run_lock._self(), "pid": os.getppid()}
    other["started"] = run_lock._start_of(os.getppid())
    monkeypatch.setattr(time, "sleep", lambda _: run.lock.write_text(json.dumps(other)))
    with pytest.raises(UsageError, match=f"process {os.getppid()} "):
        run_lock._create(run, run_lock._self(), stale)
    assert json.loads(run.lock.read_text()) == other
