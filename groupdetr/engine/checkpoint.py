"""The training checkpoint ``last.pt``: everything that a run needs to resume exactly."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from groupdetr.checkpoints.file_format import KEY, file_stamp, require_format
from groupdetr.engine.run_folder import write_atomically
from groupdetr.errors import UsageError


@dataclass
class TrainingProgress:
    """How far a run has come.

    Data order, augmentation, dropout and learning rates are functions of the step, so nothing else
    needs to be stored about them.
    """

    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # wall time of training
    evaluation_seconds: float = 0.0  # wall time of evaluation
    best_ap: float = -1.0
    stale: int = 0  # evaluations since the best one


@dataclass
class CheckpointState:
    """Everything that training changes: weights, optimizer, moving average and progress."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    progress: TrainingProgress
    # [I,K,N] index of the object that every query matched at the last evaluation, -1 for none
    matched: Tensor | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved as the best: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def save(self, path: Path) -> None:
        """Write ``last.pt``. If the process dies while it writes, the previous file remains."""
        content = {
            KEY: file_stamp(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "progress": asdict(self.progress),
            "matched": self.matched,
        }
        write_atomically(path, lambda file: torch.save(content, file))

    def load(self, path: Path) -> None:
        """Read ``last.pt``.

        `UsageError` if it cannot be read, has another format number, or is of another model.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            stamp = content.get(KEY, {}) if isinstance(content, dict) else {}
            remedy = "start a new run with groupdetr train: this version cannot resume it"
            require_format(stamp, str(path), remedy, UsageError)
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.ema is not None and content["ema"] is not None:
                self.ema.load_state_dict(content["ema"])
            self.progress = TrainingProgress(**content["progress"])
            self.matched = content["matched"]
        except (
            RuntimeError,
            KeyError,
            TypeError,
            ValueError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            raise UsageError(
                f"the checkpoint does not fit this run: {str(error).splitlines()[0]}",
                str(path),
                "resume with the model options that the run was started with, or start a new run "
                "from its weights with --weights",
            ) from error
