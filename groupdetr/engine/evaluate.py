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
from groupdetr.structures import Outputs, Predictions
from groupdetr.tasks.task import Task

Answer = Callable[[Outputs], Predictions]
Tick = Callable[[int, int], None]  # pictures done, of how many


def the_answer(outputs: Outputs) -> Predictions:
    """What the detector says when asked."""
    return outputs.answer


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
    model: nn.Module, task: Task, accelerator: Accelerator, batch: int, workers: int, answers: tuple[Answer, ...] = (the_answer,),
    tick: Tick = lambda done, total: None,
) -> list[list[Any]]:  # fmt: skip
    """For each of ``answers`` (several readings of one forward pass), what was found in every val picture, in order.

    Processes share the pictures; all of them get all results.
    """
    total, ranks = len(task.val), accelerator.num_processes
    mine = list(range(accelerator.process_index, total, ranks))
    found: list[tuple[int, list[Any]]] = []
    with evaluating(model):
        for pictures in ordered_loader(task.val, mine, batch, workers):
            with accelerator.autocast():
                outputs = model(pictures.images(accelerator.device))
            records = [task.val.records[index] for index in pictures.indices]
            sizes = [(record.width, record.height) for record in records]
            readings = [task.postprocess(answer(outputs), sizes) for answer in answers]
            found += zip(pictures.indices, (list(reading) for reading in zip(*readings)))
            tick(min(len(found) * ranks, total), total)
    everything = dict(gather_object(found) if ranks > 1 else found)
    return [[everything[index][i] for index in range(total)] for i in range(len(answers))]
