"""The lock of a run folder: one training at a time, and a lock that was left behind is no lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from groupdetr.engine import run_lock
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.run_lock import locked
from groupdetr.errors import UsageError


def write_lock(run: RunFolder, **changes: Any) -> None:
    """Write the lock of this process, with some changes."""
    run.lock.write_text(json.dumps({**run_lock._self(), **changes}))


def test_a_folder_in_which_another_process_works_is_refused_and_its_drafts_stay(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = psutil.Process(process.pid).create_time()
        write_lock(run, pid=process.pid, started=started)
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
    ended = threading.Event()

    def touch() -> None:
        while not ended.is_set():
            os.utime(run.lock)
            time.sleep(0.05)

    thread = threading.Thread(target=touch)
    try:
        if is_alive:
            thread.start()
            with pytest.raises(UsageError, match="on another"), locked(run):
                pass
        else:
            with locked(run):
                pass
    finally:
        ended.set()
        if is_alive:
            thread.join()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"pid": null}'])
def test_a_damaged_lock_is_no_lock(content: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock.write_text(content)
    with locked(run):
        assert json.loads(run.lock.read_text())["pid"] == os.getpid()
