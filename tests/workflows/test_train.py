"""`train` as a function: its result, its exit code, and how a signal stops it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from groupdetr.cli.main import main, read_options
from groupdetr.cli.options.train import TrainOptions
from groupdetr.data import annotation_cache
from groupdetr.engine.trainer import Trainer
from groupdetr.workflows.run_plan import CTRL_C_SECONDS
from groupdetr.workflows.train import train_command
from groupdetr.workflows.training_result import TrainingResult
from tests.runs import load_checkpoint, train_arguments

pytestmark = pytest.mark.usefixtures("empty_pages")


def call_train(data: Path, out: Path, *options: str) -> TrainingResult:
    """Call the workflow as `main` does: with the fields of the options."""
    arguments = train_arguments(data, out, "--steps", "4", *options)
    parsed = read_options("train", arguments[1:])
    assert isinstance(parsed, TrainOptions)
    values = vars(parsed).copy()
    for name in ("plugin", "json"):  # `main` uses these itself.
        del values[name]
    return train_command(**values)


def call_in_second_step(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    """Call ``function(trainer)`` at the beginning of the second step of a training."""
    step = Trainer.take_step

    def step_with_call(self: Trainer, network: nn.Module, micro_batches: list[Any]) -> Any:
        if self.state.progress.step == 1:
            function(self)
        return step(self, network, micro_batches)

    monkeypatch.setattr(Trainer, "take_step", step_with_call)


def test_a_complete_training_returns_its_folder_and_exit_code_0(
    shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = call_train(shapes, run)
    assert (result.path, result.interrupted, result.exit_code) == (run, False, 0)
    assert (result.groups, result.steps) == (2, 4)
    assert result.epochs == pytest.approx(4 * 4 / 24, abs=1e-4)


def test_the_threads_of_a_training_are_not_those_of_the_program_after_it(
    shapes: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    try:
        call_train(shapes, tmp_path / "run", "--steps", "1", "--threads", "1")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_annotations_are_kept_in_the_cache_folder_unless_told_otherwise(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation_cache, "MIN_BYTES", 0)
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    call_train(shapes, tmp_path / "first", "--steps", "1", "--no-cache")
    assert not (tmp_path / "cache").exists()
    call_train(shapes, tmp_path / "second", "--steps", "1")
    kept = sorted(
        path.parents[1].name.split("-")[0] for path in (tmp_path / "cache").rglob("boxes.npy")
    )
    assert kept == ["instances_train", "instances_val"]


def test_a_training_that_is_stopped_returns_exit_code_130_without_a_keyboard_interrupt(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_in_second_step(monkeypatch, Trainer.request_stop)
    run = tmp_path / "run"
    result = call_train(shapes, run)
    assert (result.path, result.interrupted, result.exit_code) == (run, True, 130)
    assert result.steps == 2
    assert load_checkpoint(run)["progress"]["step"] == 2, "the step was finished"


def test_the_program_ends_with_130_and_prints_how_to_resume(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call_in_second_step(monkeypatch, Trainer.request_stop)
    run = tmp_path / "run"
    assert main(train_arguments(shapes, run, "--steps", "4")) == 130
    output = capsys.readouterr()
    assert f"groupdetr train --resume {run}" in output.out
    assert output.err == "", "a stop is not an error"


def test_a_training_that_ends_at_stop_after_was_not_interrupted(
    shapes: Path, tmp_path: Path
) -> None:
    result = call_train(shapes, tmp_path / "run", "--stop-after", "2")
    assert not result.interrupted
    assert result.exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_current_step_and_its_handler_is_restored(
    number: signal.Signals, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_in_second_step(monkeypatch, lambda _: signal.raise_signal(number))
    former_handler = signal.getsignal(number)
    run = tmp_path / "run"
    assert call_train(shapes, run).interrupted
    assert load_checkpoint(run)["progress"]["step"] == 2
    assert signal.getsignal(number) == former_handler


def test_one_request_that_arrives_as_two_signals_saves_the_step(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout` sends its signal to the process and to its group, and torchrun passes it on."""

    def terminate_twice(_: Trainer) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    # However long the process has to wait for the processor between the two signals.
    monkeypatch.setattr("groupdetr.workflows.run_plan.SIGTERM_SECONDS", 600)
    call_in_second_step(monkeypatch, terminate_twice)
    run = tmp_path / "run"
    assert call_train(shapes, run).interrupted
    assert load_checkpoint(run)["progress"]["step"] == 2


def test_a_second_signal_stops_at_once(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_twice(_: Trainer) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(2 * CTRL_C_SECONDS)
        signal.raise_signal(signal.SIGINT)

    call_in_second_step(monkeypatch, interrupt_twice)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        call_train(shapes, run)
    assert load_checkpoint(run)["progress"]["step"] == 0, "the checkpoint before the first step"
