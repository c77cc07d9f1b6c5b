"""From a model and a task to what it finds in every validation picture, on all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from groupdetr.data.batch import ordered_loader
from groupdetr.tasks.task import Task

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


def find(
    model: nn.Module, task: Task, accelerator: Accelerator, batch: int, workers: int, tick: Tick | None = None
) -> list[Any]:
    """What is found in every val picture, in order. Processes share the pictures; all of them get all results."""
    total, ranks = len(task.val), accelerator.num_processes
    mine = list(range(accelerator.process_index, total, ranks))
    found: list[tuple[int, Any]] = []
    with evaluating(model):
        for pictures in ordered_loader(task.val, mine, batch, workers):
            with accelerator.autocast():
                answer = model(pictures.images(accelerator.device)).answer
            records = [task.val.records[index] for index in pictures.indices]
            sizes = [(record.width, record.height) for record in records]
            found += zip(pictures.indices, task.postprocess(answer, sizes))
            if tick:
                tick(min(len(found) * ranks, total), total)
    everything = dict(gather_object(found) if ranks > 1 else found)
    return [everything[index] for index in range(total)]
