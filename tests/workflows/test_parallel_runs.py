"""Parallel training runs: all are terminated at the end, and equal-time runs have their length."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from groupdetr.settings import Settings
from groupdetr.workflows.parallel_runs import Comparison, TrainingRun, terminate_at_exit


def finished_run(folder: Path, groups: int, epochs: float, seconds: float) -> TrainingRun:
    """Return a run that took so many seconds for its 10 steps, and was evaluated."""
    folder.mkdir()
    record = {"step": 10, "seconds": seconds, "peak_memory_mb": 1.0}
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


def test_an_equal_time_run_is_never_shorter_than_the_baseline(tmp_path: Path) -> None:
    base = finished_run(tmp_path / "k1", 1, 0.02, seconds=10.0)
    grouped = finished_run(tmp_path / "k6", 6, 0.02, seconds=9.0)
    longer = Comparison(base, grouped).equal_time_run()
    assert longer is not None
    assert (longer.settings.epochs, longer.steps) == (0.02, 10)


def test_sigterm_terminates_the_trainings(tmp_path: Path) -> None:
    run = replace(finished_run(tmp_path / "k1", 1, 1.0, seconds=10.0), steps=20)

    def ignore(*_: object) -> None:
        pass

    former_handler = signal.signal(signal.SIGTERM, ignore)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(KeyboardInterrupt), terminate_at_exit({run: process}):
            signal.raise_signal(signal.SIGTERM)
        assert process.wait(timeout=20) != 0
        assert signal.getsignal(signal.SIGTERM) is ignore, "the former handler is restored"
    finally:
        process.kill()
        signal.signal(signal.SIGTERM, former_handler)
