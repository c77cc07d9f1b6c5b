"""The progress of a training where the output is not a terminal: a notebook, and its commands."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from rich.console import Console

from groupdetr.console.output import create_console
from groupdetr.engine import progress
from groupdetr.engine.callbacks import StepEnd
from groupdetr.engine.progress import ProgressCallback
from groupdetr.engine.step_results import StepResults
from groupdetr.visualize.display import NotebookText


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step_end(step: int) -> StepEnd:
    """Return the result of one of ten steps."""
    results = StepResults(["layer0/l1"], torch.tensor([1.0, 2.0]))
    return StepEnd(step=step, total=10, progress=step / 10, lr=1e-3, results=results)


def test_the_text_in_a_notebook_changes_at_most_twice_a_second_and_ends_with_the_last_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([10.0, 10.2, 10.4, 10.6, 10.8])
    texts: list[str] = []
    trainer: Any = None  # The progress does not depend on the trainer.
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(NotebookText, "update", lambda self, text: texts.append(text))
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    callback = ProgressCallback(Console(file=io.StringIO(), force_jupyter=False))
    callback.on_train_start(trainer)
    for step in (7, 8, 9, 10):
        callback.on_step_end(trainer, step_end(step))
    assert [text.split()[4] for text in texts] == ["7/10", "10/10"]
    callback.on_evaluation_progress(trainer, 3, 4)
    callback.on_train_end(trainer)
    assert "step 10/10" in texts[-1]
    assert isinstance(callback.console.file, io.StringIO)
    assert callback.console.file.getvalue() == "", "nothing is printed besides"


def test_lines_of_an_evaluation_have_the_times_that_passed_and_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([0.0, 100.0, 200.0, 200.0, 300.0, 400.0])
    trainer: Any = None  # The progress does not depend on the trainer.
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    output = io.StringIO()
    callback = ProgressCallback(Console(file=output, force_jupyter=False))
    for done in (1, 3, 4, 1, 2):  # two evaluations, one after the other
        callback.on_evaluation_progress(trainer, done, 5)
    assert [line.partition("images")[2] for line in output.getvalue().splitlines()] == [
        "  1m40s passed  1m40s left",
        "  3m20s passed  1m07s left",
        "  1m40s passed  5m00s left",
    ]


@pytest.mark.parametrize("in_cell", [False, True])
def test_a_command_in_the_cell_of_a_notebook_prints_lines_although_it_has_a_terminal(
    in_cell: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    if in_cell:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
    else:
        monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert create_console().is_terminal == (not in_cell)
