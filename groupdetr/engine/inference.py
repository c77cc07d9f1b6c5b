"""Running a model over a validation set, on all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from groupdetr.data.freed_memory import trim_malloc
from groupdetr.engine.main_process import gather_to_main
from groupdetr.engine.precision import tf32_of
from groupdetr.engine.sharded_tensors import is_sharded
from groupdetr.engine.task import Batch, DetectionsT, Task
from groupdetr.modeling.detr import DetectionTransformer

OnProgress = Callable[[int, int], None]  # images done, images in all
ResultT = TypeVar("ResultT")
# Freed memory is returned to the system after so many batches, and the next batch is slower. The
# results of masks leave a few MiB of an image behind that only this returns.
TRIM_EVERY = 8


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients, and back to the former mode at the end."""
    was_training = model.training
    model.eval()
    # The memory in which sharded parameters are gathered is used in training, too.
    without_gradients = torch.no_grad if is_sharded(model) else torch.inference_mode
    try:
        with without_gradients():
            yield
    finally:
        model.train(was_training)


@contextmanager
def use_group(model: DetectionTransformer, group: int | tuple[int, ...] | None) -> Iterator[None]:
    """Let inference run this group, or several, or all groups if it is None.

    Several groups are in rising order. The setting is restored at the end.
    """
    former_group = model.queries.inference_group
    model.queries.inference_group = group
    try:
        yield
    finally:
        model.queries.inference_group = former_group


def run_inference(
    model: DetectionTransformer,
    task: Task[DetectionsT],
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    on_progress: OnProgress | None = None,
) -> list[DetectionsT]:
    """Return the detections of every validation image, in order.

    Of several processes, only the main one gets them, and every other one an empty list.
    """

    def predict_batch(batch: Batch) -> list[DetectionsT]:
        with accelerator.autocast():
            predictions = model(batch.images(accelerator.device)).final
        return task.postprocess_val(predictions, batch.indices)

    with eval_mode(model):
        return map_dataset(predict_batch, task, accelerator, batch_size, workers, on_progress)


def map_dataset(
    predict_batch: Callable[[Batch], Sequence[ResultT]],
    task: Task[DetectionsT],
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    on_progress: OnProgress | None = None,
) -> list[ResultT]:
    """Apply ``predict_batch`` to every validation image and return the results in order.

    ``predict_batch`` returns one result for each image of a batch, on the host. Processes share the
    images, and call ``on_progress`` equally often. The main process gets all results, and every
    other process an empty list.
    """
    total = len(task.val)
    processes = accelerator.num_processes
    own_indices = [*range(accelerator.process_index, total, processes)]
    # The first process has the most images. The others run the last image once more: the network
    # of sharded parameters and ``on_progress`` may wait for all processes.
    repeated = math.ceil(total / processes) - len(own_indices)
    own_indices += [total - 1] * repeated
    results: list[tuple[int, ResultT]] = []
    loader = task.val_loader.batches(own_indices, batch_size, workers, accelerator.device)
    for number, batch in enumerate(loader, start=1):
        with tf32_of(accelerator):
            results += zip(batch.indices, predict_batch(batch))
        if number % TRIM_EVERY == 0:
            trim_malloc()
        if on_progress:
            on_progress(min(len(results) * processes, total), total)
    results = results[: len(results) - repeated]
    by_index = dict(gather_to_main(results, accelerator))
    return [by_index[index] for index in range(total)] if accelerator.is_main_process else []
