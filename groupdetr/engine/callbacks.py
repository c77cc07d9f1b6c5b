"""Callbacks: objects whose methods the trainer calls at fixed moments of a training."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from groupdetr.console.text import quote
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.data.dataset import SampleIndex
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.step_results import StepResults
from groupdetr.engine.task import EvaluationResult, Task
from groupdetr.errors import CallbackError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.settings import Settings
from groupdetr.structures.json_object import JsonObject

# Yields the micro-batches of this process: lists of indices into the training dataset.
Sampler = Iterable[Sequence[int | SampleIndex]]


@dataclass(frozen=True)
class StepEnd:
    """The result of an optimizer step.

    On a GPU, the losses and the norm are not computed yet when the step ends. Reading one of them
    waits until they are. A callback that reads them in every step makes the training slower; the
    library itself reads those that it logs or shows.
    """

    step: int  # optimizer steps so far
    total: int | None  # optimizer steps in all; None if the training ends after some minutes
    progress: float  # fraction of the training that is done, 0 to 1
    lr: float
    results: StepResults = field(repr=False)  # the losses and the norm

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return self.results.loss

    @property
    def losses(self) -> Mapping[str, float]:
        """The losses by name, averaged over micro-batches and processes."""
        return self.results.losses

    @property
    def grad_norm(self) -> float:
        """The L2 norm of the gradient before clipping."""
        return self.results.grad_norm


@dataclass(frozen=True)
class EvaluationEnd:
    """The result of an evaluation."""

    step: int  # optimizer steps so far
    epoch: float
    seconds: float  # of training so far, without evaluations
    # All metrics, by the names of the columns of results.csv; nan where one is not defined. The
    # first one decides which evaluation is the best.
    metrics: Mapping[str, float]
    is_best: bool


class TrainerInterface(Protocol):
    """What a callback may use of the trainer, which is the first argument of every hook."""

    @property
    def model(self) -> DetectionTransformer:
        """The detector that is trained."""
        ...

    @property
    def evaluated_model(self) -> nn.Module:
        """The detector that is evaluated and saved: the moving average if there is one."""
        ...

    @property
    def criterion(self) -> SetCriterion:
        """The matcher and the losses."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer. Its learning rates are set from the settings before every step."""
        ...

    @property
    def task(self) -> Task:
        """The task. ``task.train`` and ``task.val`` are its datasets."""
        ...

    @property
    def settings(self) -> Settings:
        """The settings of the training, which cannot be changed."""
        ...

    @property
    def run(self) -> RunFolder:
        """The folder of the run: ``run.path``, ``run.last``, ``run.best``, ``run.records()``."""
        ...

    @property
    def accelerator(self) -> Accelerator:
        """The device, and the communication with other processes."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        ...

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the training; None if it ends after some minutes."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the training images so far."""
        ...

    @property
    def is_main_process(self) -> bool:
        """True for the one process that prints and writes files."""
        ...

    @property
    def num_processes(self) -> int:
        """Processes that train."""
        ...

    @property
    def sampler(self) -> Sampler:
        """The sampler, which chooses the images of every step. It can be replaced."""
        ...

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None: ...

    def divide_batch(self, indices: Sequence[int]) -> list[list[int]]:
        """Return the micro-batches of this process, given the images of a step."""
        ...

    def finish(self) -> None:
        """End the training after the current step as complete."""
        ...

    def request_stop(self) -> None:
        """Interrupt the training after the current step, to be resumed later."""
        ...


class Callback:
    """Base class of callbacks: every hook does nothing. Override those that you need.

    The first argument of every hook is the trainer; `TrainerInterface` lists what a callback may
    use of it. If several processes train, hooks are called in all of them, except for `on_record`
    and `on_checkpoint`, which are called in the main process only.

    An exception in a hook ends the training with a `CallbackError`. The state after the last
    complete step is saved, and the run can be resumed.

    >>> class PrintLoss(groupdetr.Callback):
    ...     def on_step_end(self, trainer, event):
    ...         print(event.step, event.loss)
    >>> groupdetr.train("data/mine", callbacks=[PrintLoss()])
    """

    def on_train_start(self, trainer: TrainerInterface) -> None:
        """Called before the first step, also when a run is resumed."""

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        """Called after every optimizer step."""

    def on_evaluation_progress(self, trainer: TrainerInterface, done: int, total: int) -> None:
        """Called during an evaluation: ``done`` of ``total`` images are finished."""

    def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
        """Called after every evaluation."""

    def on_record(self, trainer: TrainerInterface, record: JsonObject) -> None:
        """Called after a record was written to log.jsonl, in the main process."""

    def on_checkpoint(self, trainer: TrainerInterface) -> None:
        """Called after last.pt was written during the training, in the main process."""

    def on_train_end(self, trainer: TrainerInterface) -> None:
        """Called when the training ends, also if it ends with an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the callback must remember when the run is resumed.

        It is saved in last.pt by the main process. The values may be None, bool, int, float, str,
        tensors, and lists, tuples and dicts of them.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. Called before `on_train_start` of a resumed run.

        It is not called if the state is empty.
        """


class DetectionLogger(Callback):
    """A callback of the library itself that also gets the detections of every evaluation.

    They are no part of `EvaluationEnd`: a callback that kept its events would keep all detections.
    """

    def log_detections(
        self, step: int, detections: Sequence[Any], result: EvaluationResult
    ) -> None:
        """Called in the main process after the record of an evaluation was logged.

        ``detections`` are those of the validation images, in the order of the dataset.
        """


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))

# Names that other libraries give to these moments, where the nearest name would mislead.
HOOKS_ELSEWHERE = {
    "on_fit_start": "on_train_start",
    "on_train_begin": "on_train_start",
    "on_pretrain_routine_end": "on_train_start",
    "on_fit_end": "on_train_end",
    "on_batch_end": "on_step_end",
    "on_train_batch_end": "on_step_end",
    "on_optimizer_step": "on_step_end",
    "on_epoch_end": "on_evaluation_end",
    "on_train_epoch_end": "on_evaluation_end",
    "on_fit_epoch_end": "on_evaluation_end",
    "on_validation_end": "on_evaluation_end",
    "on_validation_epoch_end": "on_evaluation_end",
    "on_val_end": "on_evaluation_end",
    "on_test_end": "on_evaluation_end",
    "on_evaluate": "on_evaluation_end",
    "on_validation_batch_end": "on_evaluation_progress",
    "on_log": "on_record",
    "on_save": "on_checkpoint",
    "on_save_checkpoint": "on_checkpoint",
    "on_model_save": "on_checkpoint",
}

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


# checks before a training


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise `TypeError` for callbacks that would silently do nothing, or fail when called.

    These are objects of other classes, methods that begin with ``on_`` and are not hooks, and hooks
    with other parameters.
    """
    if not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be a list of callbacks, not {callbacks!r}")
    for callback in callbacks:
        if isinstance(callback, type) and issubclass(callback, Callback):
            name = callback.__name__
            raise TypeError(f"callbacks takes objects, not classes: pass {name}() for {name}")
        if not isinstance(callback, Callback):
            kind = type(callback).__name__
            raise TypeError(f"a callback must inherit from groupdetr.Callback; {kind} does not")
        _expect_known_hooks(callback)
        for hook in HOOKS:
            _expect_parameters(callback, hook)


def _expect_known_hooks(callback: Callback) -> None:
    """Raise `TypeError` for a method whose name begins with ``on_`` and is not that of a hook."""
    for name in dir(callback):
        if not name.startswith("on_") or name in HOOKS:
            continue
        if not callable(getattr(callback, name)):
            continue
        nearest = get_close_matches(name, HOOKS, n=1)
        suggestion = HOOKS_ELSEWHERE.get(name) or (nearest[0] if nearest else None)
        hint = f"did you mean {suggestion}? " if suggestion else ""
        raise TypeError(
            f"{type(callback).__name__}.{name} would never be called: there is no such hook; "
            f"{hint}The hooks are {', '.join(HOOKS)}. Other methods must not begin with on_."
        )


def _expect_parameters(callback: Callback, hook: str) -> None:
    """Raise `TypeError` unless a hook can be called with its arguments."""
    method = getattr(callback, hook)
    parameters = list(inspect.signature(getattr(Callback, hook)).parameters)
    expected = f"def {hook}({', '.join(parameters)})"
    name = f"{type(callback).__name__}.{hook}"
    if not callable(method):
        raise TypeError(f"{name} must be a method: {expected}")
    signature = inspect.signature(method)
    try:
        signature.bind(*parameters[1:])
    except TypeError as error:
        raise TypeError(f"{name} cannot be called with its arguments: {expected}") from error
