"""From a model and a task to what it finds in every validation picture, on all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from groupdetr.data.batch import Batch, ordered_loader
from groupdetr.engine.memory import give_back
from groupdetr.engine.task import Task

Ask = Callable[[Batch], Sequence[Any]]  # what is wanted of every picture of a batch, on the host
Tick = Callable[[int, int], None]  # pictures done, of how many


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inference, and back to what it was."""
    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was)


@contextmanager
def running(model: nn.Module, group: int | None) -> Iterator[None]:
    """Inference by this group instead of the model's own, None for all side by side; and back to what it was."""
    queries: Any = model.queries
    own, queries.inference_group = queries.inference_group, group
    try:
        yield
    finally:
        queries.inference_group = own


def find(
    model: nn.Module,
    task: Task,
    accelerator: Accelerator,
    batch: int,
    workers: int,
    tick: Tick | None = None,
) -> list[Any]:
    """What is found in every val picture, in order."""

    def ask(pictures: Batch) -> list[Any]:
        with accelerator.autocast():
            answer = model(pictures.images(accelerator.device)).answer
        return task.postprocess(answer, pictures.indices)

    with evaluating(model):
        return of_all(ask, task, accelerator, batch, workers, tick)


def of_all(
    ask: Ask,
    task: Task,
    accelerator: Accelerator,
    batch: int,
    workers: int,
    tick: Tick | None = None,
) -> list[Any]:
    """Ask of every val picture, in order. Processes share the pictures; all of them get all results."""
    total, ranks = len(task.val), accelerator.num_processes
    mine = range(accelerator.process_index, total, ranks)
    said: list[tuple[int, Any]] = []
    for pictures in ordered_loader(task.val, mine, batch, workers):
        said += zip(pictures.indices, ask(pictures))
        give_back()
        if tick:
            tick(min(len(said) * ranks, total), total)
    everything = dict(gather_object(said) if ranks > 1 else said)
    return [everything[index] for index in range(total)]
