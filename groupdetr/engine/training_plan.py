"""The plan of a training: everything that is decided before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor, nn

from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.task import Task
from groupdetr.settings import Settings


@dataclass(frozen=True)
class TrainingPlan:
    """The data, the settings, the devices and the output folder of a training.

    It is built once, from the options of the user. `fit_to_memory` may return another plan with the
    same result.
    """

    task: Task
    settings: Settings
    accelerator: Accelerator
    run: RunFolder
    workers: int  # processes that load images, for each process that trains
    # The step after which the training stops, to be resumed later. None: it runs to the end.
    stop_after: int | None
    # Writes a model to best.safetensors, the file that users load, with these weights: they are
    # those of the model, but whole if its parameters are sharded.
    save_best: Callable[[nn.Module, Mapping[str, Tensor]], None]

    @property
    def num_processes(self) -> int:
        """Processes that train."""
        return int(self.accelerator.num_processes)

    @property
    def is_main_process(self) -> bool:
        """True for the one process that prints and writes files."""
        return bool(self.accelerator.is_main_process)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the training; None if it ends after some minutes."""
        return self.settings.total_steps(len(self.task.train))

    @property
    def micro_batch_size(self) -> int:
        """Images of a micro-batch, which one process computes at once."""
        return max(1, self.settings.batch // (self.settings.accumulate * self.num_processes))
