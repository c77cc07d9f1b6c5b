"""Trainings side by side: none goes on unseen, and the longer ones last as long as they should."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from groupdetr.settings import Settings
from groupdetr.workflows.parallel_runs import Arm, Pair, ending


def arm(folder: Path, groups: int, epochs: float, seconds: float) -> Arm:
    """One that is done after 10 steps, evaluated, in so many seconds."""
    folder.mkdir()
    record = {"step": 10, "seconds": seconds, "peak_memory_mb": 1.0}
    (folder / "log.jsonl").write_text(json.dumps(record) + "\n")
    return Arm("conditional-detr-tiny", folder, folder, groups, Settings(epochs=epochs), steps=10)


@pytest.mark.parametrize(("epochs", "expected"), [(0.02, 0.03), (8.0, 12.0), (80.0, 120.0)])
def test_the_longer_baseline_lasts_as_long_as_the_groups_however_short(
    epochs: float, expected: float, tmp_path: Path
) -> None:
    pair = Pair(arm(tmp_path / "k1", 1, epochs, 10.0), arm(tmp_path / "k6", 6, epochs, 15.0))
    longer = pair.longer()
    assert longer is not None
    assert longer.settings.epochs == pytest.approx(expected)
    assert longer.steps == 15


def test_a_longer_baseline_is_never_shorter(tmp_path: Path) -> None:
    pair = Pair(arm(tmp_path / "k1", 1, 0.02, 10.0), arm(tmp_path / "k6", 6, 0.02, 9.0))
    longer = pair.longer()
    assert longer is not None
    assert (longer.settings.epochs, longer.steps) == (0.02, 10)


def test_sigterm_ends_the_trainings_too(tmp_path: Path) -> None:
    training = replace(arm(tmp_path / "k1", 1, 1.0, 10.0), steps=20)

    def ignore(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, ignore)
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(KeyboardInterrupt), ending({training: sleeping}):
            signal.raise_signal(signal.SIGTERM)
        assert sleeping.wait(timeout=20) != 0
        assert signal.getsignal(signal.SIGTERM) is ignore
    finally:
        sleeping.kill()
        signal.signal(signal.SIGTERM, before)
