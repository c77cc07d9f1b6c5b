"""Callbacks: objects whose methods the trainer calls at fixed moments of a training.

What a callback can override, what it is called with, and what it may use of the trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.data.dataset import SampleIndex
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.step_results import StepResults
from groupdetr.engine.task import EvaluationResult, Task
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
