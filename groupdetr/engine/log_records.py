"""The records of log.jsonl: what is logged of a step, and of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from groupdetr.engine.accelerator import peak_memory_mb
from groupdetr.engine.checkpoint import CheckpointState
from groupdetr.engine.schedule import TrainingSchedule
from groupdetr.engine.step_results import StepResults
from groupdetr.structures.json_object import JsonObject


def step_record(
    state: CheckpointState,
    schedule: TrainingSchedule,
    results: StepResults,
    lr: float,
    num_groups: int | None,
) -> JsonObject:
    """Return the record of the last step. On a GPU it waits for the results of the step.

    ``num_groups`` is the number of groups that the step has trained, None if it is all of them.
    """
    record: JsonObject = {
        **moment(state, schedule),
        "loss": results.loss,
        "lr": lr,
        "norm": results.grad_norm,
        "cpu_seconds": round(state.progress.cpu_seconds, 3),
        "losses": dict(results.losses),
    }
    if num_groups is not None:
        record["groups"] = num_groups
    return record


def evaluation_record(
    state: CheckpointState,
    schedule: TrainingSchedule,
    metrics: Mapping[str, float],
    device: torch.device,
) -> JsonObject:
    """Return the record of an evaluation. Undefined metrics are None.

    ``device`` is that of the training.
    """
    values = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    cost = {
        "cpu_seconds": round(state.progress.cpu_seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
    }
    return {**moment(state, schedule), **cost, **values}


def moment(state: CheckpointState, schedule: TrainingSchedule) -> JsonObject:
    """Return how far the training has come."""
    return {
        "step": state.progress.step,
        "epoch": round(schedule.epoch, 4),
        "seconds": round(state.progress.seconds, 3),
    }
