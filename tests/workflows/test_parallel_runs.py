"""Parallel training runs: how they start, stop and fail, and the length of equal-time runs."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from groupdetr import registry
from groupdetr.errors import GroupDETRError
from groupdetr.settings import Settings
from groupdetr.workflows.parallel_runs import (
    Comparison,
    ProgressBars,
    TrainingRun,
    stop,
    stop_at_exit,
    train_all,
)

needs_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no signals to other processes"
)


def finished_run(folder: Path, groups: int, epochs: float, seconds: float) -> TrainingRun:
    """Return a run that took so many seconds for its 10 steps, and was evaluated."""
    folder.mkdir()
    # A metric that is not defined is None.
    record = {"step": 10, "epoch": 1.0, "seconds": seconds, "peak_memory_mb": 1.0, "AP": None}
    (folder / "log.jsonl").write_text(json.dumps(record) + "\n")
    return TrainingRun(
        model="conditional-detr-tiny",
        data=folder,
        folder=folder,
        groups=groups,
        settings=Settings(epochs=epochs),
        steps=10,
    )


@pytest.mark.parametrize(("epochs", "expected"), [(0.02, 0.03), (8.0, 12.0), (80.0, 120.0)])
def test_an_equal_time_run_takes_as_long_as_the_run_with_groups(
    epochs: float, expected: float, tmp_path: Path
) -> None:
    base = finished_run(tmp_path / "k1", 1, epochs, seconds=10.0)
    grouped = finished_run(tmp_path / "k6", 6, epochs, seconds=15.0)
    longer = Comparison(base, grouped).equal_time_run()
    assert longer is not None
    assert longer.settings.epochs == pytest.approx(expected)
    assert longer.steps == 15


def test_the_progress_of_a_run_has_the_times_that_passed_and_are_left(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "k1", 1, 8.0, seconds=30.0)
    assert replace(run, steps=40).progress_text() == "25 %, AP -, 30s passed  1m30s left"


def test_an_equal_time_run_is_never_shorter_than_the_baseline(tmp_path: Path) -> None:
    base = finished_run(tmp_path / "k1", 1, 0.02, seconds=10.0)
    grouped = finished_run(tmp_path / "k6", 6, 0.02, seconds=9.0)
    longer = Comparison(base, grouped).equal_time_run()
    assert longer is not None
    assert (longer.settings.epochs, longer.steps) == (0.02, 10)


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


def training(
    folder: Path, program: str, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.3
) -> TrainingRun:
    """Return a run whose process runs another program, and needs ``seconds`` to stop."""
    run = replace(finished_run(folder, 1, 1.0, seconds=10.0), steps=20)
    program = program.replace("{folder}", folder.as_posix()).replace("{seconds}", str(seconds))
    (folder / "program.py").write_text(program)

    def start_process(self: TrainingRun) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(self.folder / "program.py")]
        with self.log_file.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    monkeypatch.setattr(TrainingRun, "start_process", start_process)
    return run


def wait_for(file: Path) -> None:
    last_time = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < last_time, f"{file} was not written"
        time.sleep(0.05)


def silent_console() -> Console:
    return Console(file=io.StringIO())


def test_the_error_of_a_training_that_failed_has_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = training(tmp_path / "good", STOPPABLE, monkeypatch)
    bad = training(tmp_path / "bad", FAILING, monkeypatch)
    with pytest.raises(GroupDETRError) as raised:
        train_all([good, bad], 2, silent_console())
    assert "K = 1" in raised.value.what
    assert "exit code 3" in raised.value.what
    assert str(tmp_path / "bad" / "train.log") in raised.value.where
    assert raised.value.where.splitlines()[-2:] == ["line 28", "line 29"]
    assert "line 14" not in raised.value.where, "only the end is shown"


@needs_signals
def test_ctrl_c_lets_the_trainings_write_a_checkpoint_and_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(tmp_path / "run", STOPPABLE, monkeypatch)

    def interrupt(*_: object) -> None:
        wait_for(tmp_path / "run/started")
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBars, "update", interrupt)
    console = silent_console()
    with pytest.raises(KeyboardInterrupt):
        train_all([run], 1, console)
    assert (tmp_path / "run/checkpoint").exists()
    assert isinstance(console.file, io.StringIO)
    assert "the same command continues them" in console.file.getvalue()


@needs_signals
def test_a_second_ctrl_c_kills_the_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = training(tmp_path / "run", STOPPABLE, monkeypatch, seconds=600).start_process()
    wait_for(tmp_path / "run/started")
    wait = subprocess.Popen.wait

    def interrupt(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    stop([process], silent_console())
    assert wait(process, 20) == -signal.SIGKILL
    assert not (tmp_path / "run/checkpoint").exists()


@needs_signals
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_program_stops_the_trainings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name)

    def ignore(*_: object) -> None:
        pass

    former_handler = signal.signal(number, ignore)
    run = training(tmp_path / "run", STOPPABLE, monkeypatch)
    process = run.start_process()
    wait_for(tmp_path / "run/started")
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

    def start(command: list[str], **options: Any) -> None:
        commands.append(command)
        assert options["stdout"].name == str(tmp_path / "run/train.log")
        assert options["start_new_session"], "Ctrl-C only reaches this program"

    monkeypatch.setattr(registry, "_loaded_plugins", ["one", "two.py"])
    monkeypatch.setattr(subprocess, "Popen", start)
    run = finished_run(tmp_path / "run", 1, 1.0, seconds=10.0)
    if resumed:
        run.run.config.write_text("")
    run.start_process()
    (command,) = commands
    assert ("--resume" in command) == resumed
    plugins = [command[i + 1] for i, argument in enumerate(command) if argument == "--plugin"]
    assert plugins == ["one", "two.py"]
