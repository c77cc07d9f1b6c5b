"""last.pt: all that a run needs to go on exactly where it was."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from groupdetr.engine.run_folder import write_atomically
from groupdetr.errors import UsageError


@dataclass
class Progress:
    """Where a run is. Data order, augmentation, dropout and rates are functions of the step, so this is all."""

    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # wall time of training
    evaluation_seconds: float = 0.0  # and of evaluation
    best_ap: float = -1.0
    stale: int = 0  # evaluations since then


@dataclass
class State:
    """What training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    progress: Progress
    matched: Tensor | None = (
        None  # [I,K,N] the object of every query at the last evaluation, -1 for none
    )

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are judged and shipped."""
        return self.model if self.ema is None else self.ema.module

    def save(self, path: Path) -> None:
        content: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "progress": asdict(self.progress),
            "matched": self.matched,
        }
        write_atomically(path, lambda file: torch.save(content, file))

    def load(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.ema is not None and content["ema"] is not None:
                self.ema.load_state_dict(content["ema"])
            self.progress = Progress(**content["progress"])
            self.matched = content.get("matched")  # older checkpoints have none
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
                "resume with the model options the run was started with, or start anew with --weights",
            ) from error
