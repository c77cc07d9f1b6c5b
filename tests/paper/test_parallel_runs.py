"""Parallel trainings: how they start, stop and fail."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from groupdetr import registry
from groupdetr.errors import GroupDETRError
from groupdetr.paper import parallel_runs
from groupdetr.paper.parallel_runs import (
    ProgressBars,
    progress_text,
    ready,
    start_process,
    stop,
    stop_at_exit,
    train_all,
)
from groupdetr.paper.trainings import Store, StoredTraining

from .stored import finish, training, write_config

needs_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no signals to other processes"
)


def test_the_progress_of_a_run_has_the_times_that_passed_and_are_left(tmp_path: Path) -> None:
    stored = finish(training(tmp_path, epochs=2.0), Store(tmp_path), cpu_seconds=10.0, ap=None)
    longer = dataclasses.replace(stored, training=training(tmp_path, epochs=8.0))
    longer.folder.parent.mkdir(exist_ok=True)
    stored.folder.rename(longer.folder)
    assert progress_text(longer) == "25 %, AP -, 30s passed  1m30s left"


def test_a_training_waits_for_the_one_whose_weights_it_starts_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    parent = training(tmp_path, seed=1)
    child = store.run(dataclasses.replace(training(tmp_path), parent=parent))
    assert [run.training for run in ready([child])] == [parent]
    finish(parent, store)
    assert ready([child]) == [child]


# the processes

# Stands for a training: it writes a checkpoint if it is stopped.
STOPPABLE = """
import signal, sys, time
from pathlib import Path

def stop(*_):
    time.sleep({seconds})
    Path("{folder}/checkpoint").write_text("")
    sys.exit(130)

signal.signal(signal.SIGTERM, stop)
Path("{folder}/started").write_text("")
time.sleep(600)
"""
FAILING = """
for number in range(30):
    print("line", number)
raise SystemExit(3)
"""


def run_of(
    folder: Path,
    seed: int,
    program: str,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float = 0.3,
) -> StoredTraining:
    """Return a training whose process runs another program, and needs ``seconds`` to stop."""
    run = Store(folder).run(training(folder, seed=seed))
    run.folder.mkdir(parents=True)
    place = run.folder.as_posix()
    program = program.replace("{folder}", place).replace("{seconds}", str(seconds))
    (run.folder / "program.py").write_text(program)

    def start(started: StoredTraining) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(started.folder / "program.py")]
        with parallel_runs.log_file(started).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    monkeypatch.setattr(parallel_runs, "start_process", start)
    return run


def all_of(*runs: StoredTraining) -> Callable[[], list[StoredTraining]]:
    return lambda: list(runs)


def wait_for(file: Path) -> None:
    last_time = time.monotonic() + 600
    while not file.exists():
        assert time.monotonic() < last_time, f"{file} was not written"
        time.sleep(0.05)


def silent_console() -> Console:
    return Console(file=io.StringIO())


def test_the_error_of_a_training_that_failed_has_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = run_of(tmp_path, 0, STOPPABLE, monkeypatch)
    bad = run_of(tmp_path, 1, FAILING, monkeypatch)
    with pytest.raises(GroupDETRError) as raised:
        train_all(all_of(good, bad), 2, silent_console())
    assert bad.training.name in raised.value.what
    assert "exit code 3" in raised.value.what
    assert str(bad.folder / "train.log") in raised.value.where
    assert raised.value.where.splitlines()[-2:] == ["line 28", "line 29"]
    assert "line 14" not in raised.value.where, "only the end is shown"


@needs_signals
def test_ctrl_c_lets_the_trainings_write_a_checkpoint_and_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, 0, STOPPABLE, monkeypatch)

    def interrupt(*_: object) -> None:
        wait_for(run.folder / "started")
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBars, "update", interrupt)
    console = silent_console()
    with pytest.raises(KeyboardInterrupt):
        train_all(all_of(run), 1, console)
    assert (run.folder / "checkpoint").exists()
    assert isinstance(console.file, io.StringIO)
    assert "the same command continues them" in console.file.getvalue()


@needs_signals
def test_a_second_ctrl_c_kills_the_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, 0, STOPPABLE, monkeypatch, seconds=600)
    process = parallel_runs.start_process(run)
    wait_for(run.folder / "started")
    wait = subprocess.Popen.wait

    def interrupt(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    stop([process], silent_console())
    assert wait(process, 600) == -signal.SIGKILL
    assert not (run.folder / "checkpoint").exists()


@needs_signals
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_program_stops_the_trainings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name)

    def ignore(*_: object) -> None:
        pass

    former_handler = signal.signal(number, ignore)
    run = run_of(tmp_path, 0, STOPPABLE, monkeypatch)
    process = parallel_runs.start_process(run)
    wait_for(run.folder / "started")
    try:
        with pytest.raises(KeyboardInterrupt), stop_at_exit({run: process}, silent_console()):
            signal.raise_signal(number)
        assert process.poll() == 130
        assert signal.getsignal(number) is ignore, "the former handler is restored"
    finally:
        process.kill()
        signal.signal(number, former_handler)


@needs_signals
def test_a_program_that_nohup_started_ignores_a_closed_terminal() -> None:
    former_handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_at_exit({}, silent_console()):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, former_handler)


def test_the_processes_stop_on_a_system_without_sighup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    with pytest.raises(KeyboardInterrupt), stop_at_exit({}, silent_console()):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_training_loads_the_plugins_of_this_program(
    resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    run = Store(tmp_path).run(training(tmp_path))

    def start(command: list[str], **options: Any) -> None:
        commands.append(command)
        assert options["stdout"].name == str(run.folder / "train.log")
        assert options["start_new_session"], "Ctrl-C only reaches this program"

    if resumed:
        write_config(run)
    monkeypatch.setattr(registry, "_loaded_plugins", ["one", "two.py"])
    monkeypatch.setattr(subprocess, "Popen", start)
    start_process(run)
    (command,) = commands
    assert ("--resume" in command) == resumed
    plugins = [command[i + 1] for i, argument in enumerate(command) if argument == "--plugin"]
    assert plugins == ["one", os.path.abspath("two.py")]
