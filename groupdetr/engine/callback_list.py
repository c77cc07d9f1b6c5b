"""The callbacks of a training: their hooks are called, their errors named, their states kept."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from groupdetr.console.text import quote
from groupdetr.engine.callback_checks import check_callbacks
from groupdetr.engine.callbacks import (
    Callback,
    DetectionLogger,
    EvaluationEnd,
    StepEnd,
    TrainerInterface,
)
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.task import EvaluationResult
from groupdetr.errors import CallbackError
from groupdetr.structures.json_object import JsonObject

# The types that torch.load(weights_only=True) reads, besides lists, tuples and dicts. Subclasses do
# not count: numpy.float64 is a float, and torch refuses to load it.
STATE_TYPES = (type(None), bool, int, float, str, Tensor, nn.Parameter)


class CallbackList:
    """Calls several callbacks in their order, and turns their exceptions into `CallbackError`.

    ``callbacks`` are those of the user. ``loggers`` are the library's own; they are called first
    and have no state.

    With ``defer_errors``, an exception in a hook is kept as ``failure`` and no further hook is
    called. Several processes need it: they have to agree on ending the training first, because a
    process that ended alone would leave the others waiting for its gradients.
    """

    def __init__(self, callbacks: Sequence[Callback] = (), defer_errors: bool = False) -> None:
        check_callbacks(callbacks)
        self.callbacks = list(callbacks)
        self.loggers: list[Callback] = []
        self.defer_errors = defer_errors
        self.failure: CallbackError | None = None
        # The states of the user's callbacks, as they were saved or loaded last.
        self.states: dict[str, dict[str, Any]] = {key: {} for key in self.keys()}

    # hooks

    @contextmanager
    def during_training(self, trainer: TrainerInterface) -> Iterator[None]:
        """Call `on_train_start`, and at the end `on_train_end`, also after an error.

        `on_train_end` is called for all callbacks, even if some of them fail.
        """
        try:
            self._call("on_train_start", trainer)
            yield
        except BaseException as error:
            for failure in self._end(trainer):
                error.add_note(f"In addition, {failure}")
            raise
        failures = self._end(trainer)
        if failures:
            raise failures[0]

    def _end(self, trainer: TrainerInterface) -> list[CallbackError]:
        """Call `on_train_end` of all callbacks, and return the errors."""
        failures = []
        for callback in [*self.loggers, *self.callbacks]:
            try:
                callback.on_train_end(trainer)
            except Exception as error:
                failures.append(callback_error(callback, "on_train_end", trainer, error))
        return failures

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        self._call("on_step_end", trainer, event)

    def on_evaluation_progress(self, trainer: TrainerInterface, done: int, total: int) -> None:
        self._call("on_evaluation_progress", trainer, done, total)

    def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
        self._call("on_evaluation_end", trainer, event)

    def on_record(self, trainer: TrainerInterface, record: JsonObject) -> None:
        self._call("on_record", trainer, record)

    def on_checkpoint(self, trainer: TrainerInterface) -> None:
        self._call("on_checkpoint", trainer)

    def log_detections(
        self, step: int, detections: Sequence[Any], result: EvaluationResult
    ) -> None:
        """Pass the detections of an evaluation to the library's own loggers."""
        for logger in self.loggers:
            if isinstance(logger, DetectionLogger):
                logger.log_detections(step, detections, result)

    def _call(self, hook: str, trainer: TrainerInterface, *arguments: object) -> None:
        if self.failure is not None:
            return
        for callback in [*self.loggers, *self.callbacks]:
            try:
                getattr(callback, hook)(trainer, *arguments)
            except Exception as error:
                self._fail(callback_error(callback, hook, trainer, error))
                return

    def _fail(self, failure: CallbackError) -> None:
        """Raise the error, or keep it if errors are deferred."""
        if not self.defer_errors:
            raise failure
        self.failure = self.failure or failure

    # state

    def keys(self) -> list[str]:
        """Return the key of every callback of the user: its class, numbered if there are several.

        For example ``my_callbacks.StopAtTarget`` and ``my_callbacks.StopAtTarget 2``.
        """
        keys: list[str] = []
        for callback in self.callbacks:
            kind = type(callback)
            name = f"{kind.__module__}.{kind.__qualname__}"
            key, number = name, 1
            while key in keys:
                number += 1
                key = f"{name} {number}"
            keys.append(key)
        return keys

    def update_states(self, trainer: TrainerInterface) -> None:
        """Update ``states``. A callback whose `state_dict` fails keeps its former state there."""
        first_failure = None
        for key, callback in zip(self.keys(), self.callbacks):
            try:
                state = callback.state_dict()
                expect_loadable(state, "state_dict()")
                self.states[key] = state
            except Exception as error:
                failure = callback_error(callback, "state_dict", trainer, error)
                first_failure = first_failure or failure
        if first_failure is not None:
            self._fail(first_failure)

    def load_states(
        self, states: Mapping[str, dict[str, Any]], trainer: TrainerInterface
    ) -> list[str]:
        """Restore the states of the callbacks from those of a checkpoint.

        Return the keys of the callbacks that are not in this list.
        """
        for key, callback in zip(self.keys(), self.callbacks):
            state = states.get(key, {})
            if not state:
                continue
            self.states[key] = state
            try:
                callback.load_state_dict(state)
            except Exception as error:
                raise callback_error(callback, "load_state_dict", trainer, error) from error
        return [key for key in states if key not in self.keys()]


def callback_error(
    callback: Callback, method: str, trainer: TrainerInterface, error: Exception
) -> CallbackError:
    """Return the error for an exception in a method of a callback, with the exception as cause."""
    when = f"after step {trainer.step}" if trainer.step else "before the first step"
    failure = CallbackError(
        f"the callback {type(callback).__name__} failed in {method} {when}: {summary(error)}",
        source_line(error) or str(trainer.run.path),
        resume_remedy(trainer.run),
    )
    failure.__cause__ = error
    return failure


def summary(error: Exception) -> str:
    """Return the type of an exception and the first line of its message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def source_line(error: Exception) -> str | None:
    """Return the last line of the callback's file that led to the exception.

    None if it came from a check in this file.
    """
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if frame.filename != __file__]
    in_callback = [frame for frame in outside if frame.filename == outside[0].filename]
    if not in_callback:
        return None
    return f"{in_callback[-1].filename}, line {in_callback[-1].lineno}"


def resume_remedy(run: RunFolder) -> str:
    """Return what to do after a callback or a sampler has failed."""
    return (
        "correct it, and resume the run from its last checkpoint: "
        f"groupdetr.train(resume={str(run.path)!r}, callbacks=[...]), "
        f"or groupdetr train --resume {quote(run.path)} --callback FILE.py:CLASS"
    )


def expect_loadable(state: object, where: str) -> None:
    """Raise `TypeError` unless ``state`` is a dict that can be saved in last.pt and loaded again.

    ``where`` is the expression of the state, for the message.
    """
    if type(state) is not dict:
        raise TypeError(f"{where} must be a dict, not {type(state).__name__}")
    _expect_values_loadable(state, where)


def _expect_values_loadable(value: object, where: str) -> None:
    if type(value) is dict:
        for key, item in value.items():
            _expect_values_loadable(key, f"a key of {where}")
            _expect_values_loadable(item, f"{where}[{key!r}]")
    elif type(value) is list or type(value) is tuple:
        for i, item in enumerate(value):
            _expect_values_loadable(item, f"{where}[{i}]")
    elif type(value) not in STATE_TYPES:
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise TypeError(
            f"{where} is of type {kind}; a state may have None, bool, int, float, str, tensors, "
            "and lists, tuples and dicts of them"
        )
