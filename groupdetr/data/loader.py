"""Data loaders: which images a training step takes, and how worker processes load them.

Training reads one endless stream of images, epoch after epoch, each shuffled by (seed, epoch).
Step s takes a fixed part of the stream, and the augmentation of an image depends on (seed, epoch,
image) alone. Therefore a run can be resumed at any step, with any number of workers or processes,
and trains on the same data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from groupdetr.data.dataset import SampleIndex
from groupdetr.errors import GroupDETRError

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)
SampleT = TypeVar("SampleT")


class CollatingDataset(Protocol[BatchT_co]):
    """A dataset that makes batches of its samples. Only the dataset knows the type of a sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SampleIndex | int) -> Any:
        """Return one sample. In training, ``index`` is a `SampleIndex` with the epoch."""
        ...

    def collate(self, samples: Sequence[Any]) -> BatchT_co:
        """Return the batch of samples."""
        ...


class StepBatchSampler(Sampler[list[SampleIndex]]):
    """The micro-batches of one process, for the steps from ``start`` to ``stop``, excluded.

    A step takes ``batch`` images. Each of the ``ranks`` processes yields ``accumulate`` lists of
    ``batch`` / (ranks * accumulate) images for it. The images of a step are distributed over the
    processes in turn, so all processes together train on the same images as one process would.
    ``rank`` is the index of this process.
    """

    def __init__(
        self,
        num_images: int,
        batch: int,
        seed: int,
        start: int,
        stop: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.num_images = num_images
        self.batch = batch
        self.seed = seed
        self.start = start
        self.stop = stop
        self.rank = rank
        self.ranks = ranks
        self.accumulate = accumulate

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        current_epoch = -1
        order = np.empty(0, dtype=np.int64)
        for step in range(self.start, self.stop):
            samples: list[SampleIndex] = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                epoch, position_in_epoch = divmod(position, self.num_images)
                if epoch != current_epoch:
                    generator = np.random.default_rng((self.seed, epoch))
                    order = generator.permutation(self.num_images)
                    current_epoch = epoch
                samples.append(SampleIndex(epoch, int(order[position_in_epoch])))
            yield from divide_batch(samples, self.rank, self.ranks, self.accumulate)


def divide_batch(
    batch: Sequence[SampleT], rank: int, ranks: int, accumulate: int
) -> list[list[SampleT]]:
    """Return the ``accumulate`` micro-batches of one process, given the batch of a step.

    The batch is distributed over the ``ranks`` processes in turn. ``rank`` is the index of the
    process.
    """
    own = list(batch[rank::ranks])
    size = len(own) // accumulate
    return [own[i * size : (i + 1) * size] for i in range(accumulate)]


class BatchDataset(Dataset[BatchT | GroupDETRError]):
    """A dataset that the data loader reads by the batch.

    It returns errors that a user can act on instead of raising them. PyTorch would replace an
    error raised in a worker by another one, whose message is a page long.
    """

    def __init__(self, dataset: CollatingDataset[BatchT]) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Sequence[SampleIndex | int]) -> BatchT | GroupDETRError:
        """Return the batch of these samples, or the error that one of them caused."""
        try:
            return self.dataset.collate([self.dataset[index] for index in indices])
        except GroupDETRError as error:
            return error


class Loader(Generic[BatchT]):
    """Loads batches of a dataset with PyTorch's data loader, and raises errors of its workers.

    ``batches`` lists the indices of every batch. With ``persistent_workers``, the worker processes
    stay alive between two iterations.
    """

    def __init__(
        self,
        dataset: CollatingDataset[BatchT],
        batches: Iterable[list[SampleIndex]] | Iterable[list[int]],
        workers: int,
        persistent_workers: bool = False,
    ) -> None:
        self.loader = DataLoader(
            BatchDataset(dataset),
            batch_sampler=batches,
            collate_fn=_identity,
            num_workers=workers,
            worker_init_fn=limit_worker_threads,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=persistent_workers,
        )

    def __iter__(self) -> Iterator[BatchT]:
        return map(_raise_error, self.loader)


def training_loader(
    dataset: CollatingDataset[BatchT], sampler: Iterable[list[SampleIndex]], workers: int
) -> Loader[BatchT]:
    """Return a loader of the micro-batches of ``sampler``."""
    return Loader(dataset, sampler, workers)


class ValidationLoader(Generic[BatchT]):
    """Loads images of one dataset in order, for every evaluation with the same worker processes.

    Worker processes that are not forked take seconds to start. They stay alive as long as this
    object, or until `close` is called, or `batches` with other arguments.
    """

    def __init__(self, dataset: CollatingDataset[BatchT]) -> None:
        self.dataset = dataset
        self._loader: Loader[BatchT] | None = None
        self._arguments: tuple[range, int, int] | None = None

    def batches(self, indices: range, batch_size: int, workers: int) -> Loader[BatchT]:
        """Return the loader of the images ``indices``, in this order, in batches."""
        arguments = (indices, batch_size, workers)
        if self._loader is None or arguments != self._arguments:
            batches = [
                list(indices[first : first + batch_size])
                for first in range(0, len(indices), batch_size)
            ]
            self._loader = Loader(self.dataset, batches, workers, persistent_workers=workers > 0)
            self._arguments = arguments
        return self._loader

    def close(self) -> None:
        """End the worker processes. The next call of `batches` starts new ones."""
        self._loader = None


def limit_worker_threads(worker: int) -> None:
    """Limit a worker process to one thread. PyTorch's data loader calls it with the worker's index.

    There are several worker processes, and more threads would compete with the training.
    """
    torch.set_num_threads(1)


def _identity(batch: BatchT) -> BatchT:
    """Return the batch, which `BatchDataset` has collated already."""
    return batch


def _raise_error(batch: BatchT | GroupDETRError) -> BatchT:
    if isinstance(batch, GroupDETRError):
        raise batch
    return batch
