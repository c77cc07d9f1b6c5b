"""Callbacks are called in a fixed order, and at the end of a training even after an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.callbacks import Callback, CallbackList, EvaluationEnd, StepEnd
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trainer import Trainer
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.task import DetectionTask

RECIPE = TinyConditionalDETR(
    num_classes=3, num_groups=2, num_queries=6, channels=32, num_heads=2, dim_feedforward=32
)


class EventRecorder(Callback):
    """Appends the name of every event to a list, which several recorders may share."""

    def __init__(self, events: list[str], suffix: str = "") -> None:
        self.events, self.suffix = events, suffix

    def record(self, event: str) -> None:
        self.events.append(event + self.suffix)

    def on_train_start(self) -> None:
        self.record("train start")

    def on_step_end(self, event: StepEnd) -> None:
        self.record(f"step {event.step}")

    def on_evaluation_progress(self, done: int, total: int) -> None:
        self.record(f"evaluated {done} of {total}")

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        self.record(f"evaluation of epoch {event.epoch:g}")

    def on_record(self, record: Mapping[str, Any]) -> None:
        self.record("record of step" if "losses" in record else "record of evaluation")

    def on_checkpoint(self) -> None:
        self.record("checkpoint")

    def on_train_end(self) -> None:
        self.record("train end")


def create_trainer(data: Path, out: Path, *callbacks: Callback) -> Trainer:
    """Return a trainer for two epochs of two steps each, with an evaluation after every epoch."""
    settings = Settings(
        epochs=2, batch=12, imgsz=48, augment="none", workers=0, threads=1, device="cpu"
    )
    dataset = DetectionTask.read(data, None)
    plan = TrainingPlan(
        task=DetectionTask(dataset, settings, 10),
        settings=settings,
        accelerator=create_accelerator(settings),
        run=RunFolder(out),
        workers=0,
        stop_after=None,
        save_best=lambda model: None,
    )
    return Trainer(plan, RECIPE.build(), RECIPE.criterion(), callbacks)


def test_callbacks_are_called_in_the_order_of_the_training(shapes: Path, tmp_path: Path) -> None:
    events: list[str] = []
    create_trainer(shapes, tmp_path, EventRecorder(events)).train()
    evaluation = ["evaluated 6 of 6", "record of evaluation"]
    assert events == [
        "train start",
        *("step 1", "record of step"),
        *("step 2", "record of step"),
        *(*evaluation, "evaluation of epoch 1", "checkpoint"),
        *("step 3", "record of step"),
        *("step 4", "record of step"),
        *(*evaluation, "evaluation of epoch 2", "checkpoint"),
        "train end",
    ]


def test_a_callback_may_stop_the_training_which_then_ends_with_a_checkpoint(
    shapes: Path, tmp_path: Path
) -> None:
    class StopAfterFirstStep(Callback):
        def on_step_end(self, event: StepEnd) -> None:
            trainer.request_stop()

    events: list[str] = []
    trainer = create_trainer(shapes, tmp_path, EventRecorder(events), StopAfterFirstStep())
    trainer.train()
    assert trainer.stopped_early()
    assert events == ["train start", "step 1", "record of step", "checkpoint", "train end"]
    assert trainer.run.last.is_file()


def test_train_end_is_called_after_an_error_too(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    trainer = create_trainer(shapes, tmp_path, EventRecorder(events))
    plain_step = trainer.step

    def fail_in_second_step(network: nn.Module, micro_batches: list[Any]) -> Any:
        if trainer.state.progress.step == 1:
            raise RuntimeError("the second step fails")
        return plain_step(network, micro_batches)

    monkeypatch.setattr(trainer, "step", fail_in_second_step)
    with pytest.raises(RuntimeError, match="the second step fails"):
        trainer.train()
    assert events == ["train start", "step 1", "record of step", "train end"]


def test_a_list_calls_every_callback_in_order() -> None:
    events: list[str] = []
    first, second = EventRecorder(events, " (first)"), EventRecorder(events, " (second)")
    callbacks = CallbackList([first, second])
    with callbacks:
        callbacks.on_step_end(StepEnd(step=1, total=4, progress=0.25, loss=2.0, lr=1e-4))
        callbacks.on_evaluation_progress(3, 6)
        callbacks.on_record({"step": 1})
        callbacks.on_evaluation_end(EvaluationEnd(1.0, 12.0, {"AP": 0.4}, is_best=True))
        callbacks.on_checkpoint()
    expected = []
    for event in (
        "train start",
        "step 1",
        "evaluated 3 of 6",
        "record of evaluation",
        "evaluation of epoch 1",
        "checkpoint",
        "train end",
    ):
        expected += [f"{event} (first)", f"{event} (second)"]
    assert events == expected
