"""A training whose launcher was killed stops with a checkpoint. Other parents may end."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from groupdetr.cli.main import main
from groupdetr.engine.launcher import Launcher
from groupdetr.engine.step_results import StepResults
from groupdetr.engine.trainer import Trainer
from tests.runs import load_checkpoint, train, train_arguments

INIT = 1  # the process that becomes the parent of those whose parent has ended
OPTIONS = ("--steps", "4", "--eval-every", "100")


def lose_the_parent_in_the_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Trainer.log

    def log_and_lose(self: Trainer, results: StepResults, lr: float) -> None:
        log(self, results, lr)
        if self.step == 2:
            monkeypatch.setattr(os, "getppid", lambda: INIT)

    monkeypatch.setattr(Trainer, "log", log_and_lose)


def test_a_training_whose_launcher_ends_stops_with_a_checkpoint(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with monkeypatch.context() as patch:
        lose_the_parent_in_the_second_step(patch)
        assert main(train_arguments(shapes, run, *OPTIONS)) == 130
    assert load_checkpoint(run)["progress"]["step"] == 2
    (message,) = (record.getMessage() for record in caplog.records if record.name == "groupdetr")
    assert f"the launcher of this process ({os.getppid()}) has ended" in message
    assert main(["train", "--resume", str(run)]) == 0


def test_a_training_goes_on_when_the_shell_ends_that_started_it(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    lose_the_parent_in_the_second_step(monkeypatch)
    run = train(shapes, tmp_path / "run", *OPTIONS)
    assert load_checkpoint(run)["progress"]["step"] == 4


def test_the_end_of_a_launcher_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    launcher = Launcher()
    assert not launcher.has_ended()
    monkeypatch.setattr(os, "getppid", lambda: INIT)
    with caplog.at_level(logging.WARNING):
        assert [launcher.has_ended() for _ in range(3)] == [True, False, False]
    assert len(caplog.records) == 1
