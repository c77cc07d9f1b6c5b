"""The training checkpoint ``last.pt``: everything that a run needs to resume exactly.

The checkpoint before it is kept as ``previous.pt``, and is used if ``last.pt`` is damaged.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from groupdetr.checkpoints import checked_file
from groupdetr.checkpoints.checked_file import DamagedError
from groupdetr.checkpoints.file_format import KEY, file_stamp, require_format
from groupdetr.engine.sharded_tensors import divided_like, gather, is_part, is_sharded
from groupdetr.engine.step_groups import GroupRows
from groupdetr.errors import UsageError
from groupdetr.files.writing import draft_of, explained, write_atomically


@dataclass
class TrainingProgress:
    """How far a run has come.

    Data order, augmentation, dropout and learning rates are functions of the step and of the number
    of images, so nothing else needs to be stored about them.
    """

    step: int = 0  # optimizer steps taken
    images: int = 0  # training images taken, those that were taken in several epochs each time
    seconds: float = 0.0  # wall time of training
    # CPU time of the main process in training, all its threads together
    cpu_seconds: float = 0.0
    evaluation_seconds: float = 0.0  # wall time of evaluation
    # wall time between steps and evaluations: of checkpoints, logs and callbacks
    other_seconds: float = 0.0
    seconds_at_evaluation: float = 0.0  # ``seconds`` at the last evaluation
    last_evaluation_seconds: float = 1.0  # duration of the last evaluation; a guess before it
    best_ap: float = -1.0  # -1: it was undefined at every evaluation, or there was none
    stale: int = 0  # evaluations since the best one
    evaluated_step: int = -1  # the step of the last evaluation; -1: there was none
    evaluation_due: bool = False  # the evaluation of the current step is still to be done


@dataclass
class CheckpointState:
    """Everything that training changes: weights, optimizer, moving average, progress, callbacks."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None
    progress: TrainingProgress
    # [I,K,N] index of the object that every query matched at the last evaluation, -1 for none
    matched: Tensor | None = None
    # The states of the user's callbacks, by the names of their classes.
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    # True if last.pt is known to be whole, so that it may take the place of previous.pt.
    last_is_whole: bool = False
    # What the optimizer has in place of the parameters that hold all groups, if it has them.
    rows: GroupRows | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and saved as the best: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    def save(self, path: Path, previous: Path | None = None, is_main: bool = True) -> None:
        """Write ``last.pt``, and keep the former one as ``previous`` if that is given.

        If the process dies at any time, one of them is whole. `WriteError` if it cannot be written.
        If parameters are sharded, all processes call this, and the main one writes: the file is the
        same as without FSDP.
        """
        # Sharded parameters are kept as they are, so that those that modules share are known to be
        # the same.
        keep_vars = self.is_sharded
        tensors = {
            "model": self.model.state_dict(keep_vars=keep_vars),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(keep_vars=keep_vars),
        }
        if self.is_sharded:
            tensors = gather(tensors, keep=is_main)
        if not is_main:
            return
        content = {
            KEY: file_stamp(),
            **tensors,
            "optimizer_parameters": self._parameter_names(),
            "progress": asdict(self.progress),
            "matched": self.matched,
            "callbacks": self.callbacks,
        }

        def write(file: IO[bytes]) -> None:
            checked_file.save(content, file)
            if previous is not None and self.last_is_whole:
                with explained(previous):
                    _keep(path, previous)

        write_atomically(path, write)
        self.last_is_whole = True

    @property
    def is_sharded(self) -> bool:
        """True if the parameters are divided over processes (FSDP)."""
        return is_sharded(self.model)

    def is_finite(self) -> bool:
        """True if no weight and no value of the optimizer is infinite or nan."""
        tensors = [*self.model.state_dict().values()]
        if self.ema is not None:
            tensors += self.ema.state_dict().values()
        for values in self.optimizer.state.values():
            tensors += [value for value in values.values() if isinstance(value, Tensor)]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def load_whole(self, path: Path, previous: Path) -> str | None:
        """Read ``last.pt``, or the checkpoint before it if ``last.pt`` is damaged.

        Return a sentence that says so, None if ``last.pt`` was read. `UsageError` if neither is
        whole, and as in `load`.
        """
        try:
            self.load(path)
            self.last_is_whole = True
            return None
        except (DamagedError, FileNotFoundError) as error:
            damage = _damage(error)
        try:
            self.load(previous)
        except (DamagedError, FileNotFoundError) as error:
            raise UsageError(
                f"the checkpoint cannot be used: {damage}, and there is no former one that is "
                f"whole ({_damage(error)})",
                str(path),
                "start a new run from the best weights of this one: groupdetr train DATA --weights "
                f"{path.with_name('best.safetensors')}",
            ) from error
        return (
            f"{path} cannot be used: {damage}; the run goes on from the checkpoint before it, "
            f"{previous}, of step {self.progress.step}"
        )

    def load(self, path: Path) -> None:
        """Read a checkpoint.

        `DamagedError` if it is not whole, and `UsageError` if it has another format number, or is
        of another model.
        """
        checked_file.check(path)
        try:
            # All processes of a machine share the memory of a file that is mapped.
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=self.is_sharded or None
            )
            stamp = content.get(KEY, {}) if isinstance(content, dict) else {}
            remedy = "start a new run with groupdetr train: this version cannot resume it"
            require_format(stamp, str(path), remedy, UsageError)
            load_weights(self.model, content["model"])
            if self.ema is not None:
                weights = {f"module.{key}": value for key, value in content["model"].items()}
                frozen = {f"module.{key}" for key in self._frozen_names()}
                # A run that had no moving average begins one with its weights. Parameters that are
                # frozen now are those of the model, also if they were trained until now.
                averages = content["ema"] or {**self.ema.state_dict(), **weights}
                kept = {key: value for key, value in weights.items() if key in frozen}
                load_weights(self.ema, {**averages, **kept})
            self._load_optimizer(content["optimizer"], content["optimizer_parameters"])
            self.progress = TrainingProgress(**content["progress"])
            self.matched = content["matched"]
            self.callbacks = content.get("callbacks", {})
        except (
            RuntimeError,
            LookupError,
            AttributeError,
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

    def _frozen_names(self) -> list[str]:
        """Return all names of the parameters that are not trained."""
        parameters = self.model.named_parameters(remove_duplicate=False)
        return [name for name, parameter in parameters if not parameter.requires_grad]

    def _parameter_names(self) -> list[str]:
        """Return the names of the parameters in the order in which the optimizer numbers them."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        if self.rows is not None:
            names |= self.rows.names()
        groups = self.optimizer.param_groups
        return [names[id(parameter)] for group in groups for parameter in group["params"]]

    def _load_optimizer(self, saved: dict[str, Any], saved_names: list[str]) -> None:
        """Load the moments of every parameter by its name.

        Weight decay and factors of learning rates stay those of the settings, which the user may
        have changed, and with them the division of the parameters into groups.
        """
        by_name = {saved_names[index]: state for index, state in saved["state"].items()}
        if self.rows is not None:
            by_name = self.rows.divided(by_name)
        parameters = [x for group in self.optimizer.param_groups for x in group["params"]]
        state = {}
        for i, (name, parameter) in enumerate(zip(self._parameter_names(), parameters)):
            if name in by_name:
                state[i] = _state_of(parameter, by_name[name])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors into a model, which may be sharded.

    `RuntimeError` if names or shapes differ.
    """
    own = model.state_dict()
    divided = {
        name: divided_like(x, own[name]) if _is_shard_of(own.get(name), x) else x
        for name, x in weights.items()
    }
    model.load_state_dict(divided)


def _state_of(parameter: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the optimizer keeps for a parameter, given that of the whole parameter.

    Its moments are sharded as the parameter is, and have its memory format: a fused optimizer reads
    both in the order of their memory, and those of a run with FSDP are contiguous.
    """
    return {
        key: divided_like(value, parameter)
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0
        else value
        for key, value in state.items()
    }


def _is_shard_of(own: Any, whole: Tensor) -> bool:
    return is_part(own) and own.shape == whole.shape


def _damage(error: DamagedError | FileNotFoundError) -> str:
    """Return what is wrong with a checkpoint, as a part of a sentence."""
    return "it does not exist" if isinstance(error, FileNotFoundError) else str(error)


def _keep(path: Path, previous: Path) -> None:
    """Keep a file under another name until it is replaced. There is one at any time."""
    if not path.exists() or (previous.exists() and path.samefile(previous)):
        return
    draft = draft_of(previous)
    with suppress(FileNotFoundError):
        draft.unlink()
    try:
        os.link(path, draft)
    except (OSError, NotImplementedError):
        # The file system has no hard links. The new file takes the free place in a moment.
        path.replace(previous)
    else:
        draft.replace(previous)
