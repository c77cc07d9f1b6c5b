"""Callbacks: functions that the trainer calls at fixed moments of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from groupdetr.structures.json_object import JsonObject


@dataclass(frozen=True)
class StepEnd:
    """The state of the training after an optimizer step."""

    step: int  # optimizer steps so far
    total: int | None  # optimizer steps in all; None if the training ends after some minutes
    progress: float  # fraction of the training that is done, 0 to 1
    loss: float  # sum of all losses
    lr: float


@dataclass(frozen=True)
class EvaluationEnd:
    """The result of an evaluation."""

    epoch: float
    seconds: float  # of training so far, without evaluations
    stats: Mapping[str, float]  # the metrics of the task that are shown during training
    is_best: bool


class Callback:
    """Base class of callbacks: every method does nothing. Override those that you need."""

    def on_train_start(self) -> None:
        """Called before the first step."""

    def on_step_end(self, event: StepEnd) -> None:
        """Called after every optimizer step."""

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Called during an evaluation: ``done`` of ``total`` images are finished."""

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """Called after every evaluation."""

    def on_record(self, record: JsonObject) -> None:
        """Called with every record that is written to log.jsonl."""

    def on_checkpoint(self) -> None:
        """Called after last.pt was written."""

    def on_train_end(self) -> None:
        """Called when the training ends, also if it ends with an error."""


class CallbackList(Callback, AbstractContextManager["CallbackList"]):
    """Calls several callbacks in their order.

    As a context manager it calls `on_train_start` and `on_train_end`.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = list(callbacks)

    def __enter__(self) -> CallbackList:
        self.on_train_start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.on_train_end()

    def on_train_start(self) -> None:
        for callback in self.callbacks:
            callback.on_train_start()

    def on_step_end(self, event: StepEnd) -> None:
        for callback in self.callbacks:
            callback.on_step_end(event)

    def on_evaluation_progress(self, done: int, total: int) -> None:
        for callback in self.callbacks:
            callback.on_evaluation_progress(done, total)

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        for callback in self.callbacks:
            callback.on_evaluation_end(event)

    def on_record(self, record: JsonObject) -> None:
        for callback in self.callbacks:
            callback.on_record(record)

    def on_checkpoint(self) -> None:
        for callback in self.callbacks:
            callback.on_checkpoint()

    def on_train_end(self) -> None:
        for callback in self.callbacks:
            callback.on_train_end()
