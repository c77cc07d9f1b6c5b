"""Data loaders: which images a training step takes, and how worker processes load them.

Training reads one endless stream of images, epoch after epoch, each shuffled by (seed, epoch).
Step s takes a fixed part of the stream, and the augmentation of an image depends on (seed, epoch,
image) alone. Therefore a run can be resumed at any step, with any number of workers or processes,
and trains on the same data. For the same reason a loader goes on with fewer worker processes if the
machine has too little memory for them, and loads the same batches.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from groupdetr.data import worker_failures
from groupdetr.data.dataset import SampleIndex
from groupdetr.data.worker_failures import WorkerFailure
from groupdetr.errors import GroupDETRError

CPU = torch.device("cpu")
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
    ``rank`` is the index of this process. ``first_image`` is the number of images that were taken
    before ``start``; None: all steps before it had this batch, too.
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
        first_image: int | None = None,
    ) -> None:
        self.first_image = start * batch if first_image is None else first_image
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
            first = self.first_image + (step - self.start) * self.batch
            for position in range(first, first + self.batch):
                epoch, position_in_epoch = divmod(position, self.num_images)
                if epoch != current_epoch:
                    generator = np.random.default_rng((self.seed, epoch))
                    order = generator.permutation(self.num_images)
                    current_epoch = epoch
                samples.append(SampleIndex(epoch, int(order[position_in_epoch]), step))
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


class BatchDataset(Dataset[BatchT | GroupDETRError | WorkerFailure]):
    """A dataset that the data loader reads by the batch.

    It returns errors that a user can act on instead of raising them. PyTorch would replace an
    error raised in a worker by another one, whose message is a page long.
    """

    def __init__(self, dataset: CollatingDataset[BatchT]) -> None:
        self.dataset = dataset

    def __getitems__(
        self, indices: Sequence[SampleIndex | int]
    ) -> BatchT | GroupDETRError | WorkerFailure:
        """Return the batch of these samples, or the error that one of them caused.

        In a worker, the batch lies in shared memory. If that is too small, a `WorkerFailure` is
        returned.
        """
        try:
            batch = self.dataset.collate([self.dataset[index] for index in indices])
            if get_worker_info() is not None:
                worker_failures.share_tensors(batch)
            return batch
        except GroupDETRError as error:
            return error
        except (RuntimeError, OSError) as error:
            if get_worker_info() is None or not worker_failures.is_out_of_shared_memory(error):
                raise
            return WorkerFailure(worker_failures.SHARED_MEMORY)


class _IndexStream(Sampler[Any]):
    """Passes lists of indices to a data loader, and keeps those whose batches it has not returned.

    If the data loader fails, another one is given the same lists again.
    """

    def __init__(self) -> None:
        self.source: Iterator[Any] = iter(())
        self.pending: deque[Any] = deque()

    def start(self, batches: Iterable[Any]) -> None:
        """Begin to pass the lists of ``batches``."""
        self.source = iter(batches)
        self.pending.clear()

    def __iter__(self) -> Iterator[Any]:
        yield from list(self.pending)
        for indices in self.source:
            self.pending.append(indices)
            yield indices


class Loader(Generic[BatchT]):
    """Loads batches of a dataset with PyTorch's data loader, and raises errors of its workers.

    ``batches`` lists the indices of every batch. With ``persistent_workers``, the worker processes
    stay alive between two iterations. If workers fail for want of memory, it goes on with half as
    many, in the end with none, and says so in one line. With ``pin_memory``, batches lie in pinned
    memory, from which copies to a GPU can overlap. That takes memory of the GPU, too.
    """

    def __init__(
        self,
        dataset: CollatingDataset[BatchT],
        batches: Iterable[list[SampleIndex]] | Iterable[list[int]],
        workers: int,
        persistent_workers: bool = False,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = BatchDataset(dataset)
        self.batches = batches
        self.workers = workers
        self.persistent_workers = persistent_workers
        self.pin_memory = pin_memory
        self.stream = _IndexStream()
        self.loader = self._create_loader()

    def _create_loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.dataset,
            batch_sampler=self.stream,
            collate_fn=_identity,
            num_workers=self.workers,
            worker_init_fn=prepare_worker,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.workers > 0,
        )

    def __iter__(self) -> Iterator[BatchT]:
        self.stream.start(self.batches)
        return self._iterate()

    def close(self) -> None:
        """End the worker processes. The next iteration starts new ones."""
        worker_failures.shut_down(getattr(self.loader, "_iterator", None))
        self.loader = self._create_loader()

    def _iterate(self) -> Iterator[BatchT]:
        iterator: Iterator[Any] | None = None
        former_workers = self.workers
        reason: str | None = None  # why there are fewer workers now
        try:
            while True:
                failure: WorkerFailure | None = None
                batch: Any = None
                try:
                    with worker_failures.noticed_while_waiting():
                        if iterator is None:
                            iterator = iter(self.loader)
                            worker_failures.end_workers_at_exit(iterator)
                        worker_failures.raise_missed_error(iterator)
                        batch = next(iterator)
                except StopIteration:
                    return
                except (RuntimeError, OSError, EOFError) as error:
                    if not self.workers:
                        raise
                    failure = worker_failures.explain(error, iterator)
                    if failure is None:
                        raise
                if isinstance(batch, GroupDETRError):
                    raise batch
                if isinstance(batch, WorkerFailure):
                    failure = batch
                if failure is not None:
                    reason = failure.reason
                    # The former workers end before new ones are started.
                    worker_failures.shut_down(iterator, have_failed=True)
                    del iterator, batch, self.loader
                    iterator = None
                    self.workers //= 2
                    self.loader = self._create_loader()
                    continue
                if reason is not None:
                    worker_failures.log_fewer_workers(reason, former_workers, self.workers)
                    former_workers, reason = self.workers, None
                self.stream.pending.popleft()
                yield batch
        finally:
            # An error would keep the iterator alive, and its workers with it.
            if not self.persistent_workers:
                worker_failures.shut_down(iterator)


def training_loader(
    dataset: CollatingDataset[BatchT],
    sampler: Iterable[list[SampleIndex]],
    workers: int,
    device: torch.device = CPU,
) -> Loader[BatchT]:
    """Return a loader of the micro-batches of ``sampler``, which are used on ``device``."""
    return Loader(dataset, sampler, workers, pin_memory=device.type == "cuda")


class ValidationLoader(Generic[BatchT]):
    """Loads images of one dataset in order, for every evaluation with the same worker processes.

    Worker processes that are not forked take seconds to start. They stay alive as long as this
    object, or until `close` is called, or `batches` with other arguments.
    """

    def __init__(self, dataset: CollatingDataset[BatchT]) -> None:
        self.dataset = dataset
        self._loader: Loader[BatchT] | None = None
        self._arguments: tuple[Sequence[int], int, int, torch.device] | None = None

    def batches(
        self,
        indices: Sequence[int],
        batch_size: int,
        workers: int,
        device: torch.device = CPU,
    ) -> Loader[BatchT]:
        """Return the loader of the images ``indices``, in this order, in batches for ``device``."""
        arguments = (indices, batch_size, workers, device)
        if self._loader is None or arguments != self._arguments:
            self.close()
            batches = [
                list(indices[first : first + batch_size])
                for first in range(0, len(indices), batch_size)
            ]
            self._loader = Loader(
                self.dataset,
                batches,
                workers,
                persistent_workers=workers > 0,
                pin_memory=device.type == "cuda",
            )
            self._arguments = arguments
        return self._loader

    def close(self) -> None:
        """End the worker processes. The next call of `batches` starts new ones."""
        if self._loader is not None:
            self._loader.close()
        self._loader = None


def prepare_worker(worker: int) -> None:
    """Prepare a worker process. PyTorch's data loader calls it with the worker's index."""
    # There are several worker processes, and more threads would compete with the training.
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal, and SIGTERM of torchrun, Slurm or systemd often
    # the whole process group. The training ends after a whole step, for which it may need more
    # batches, and then it ends its workers. If it dies, they notice it and end, too.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP.
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _identity(batch: BatchT) -> BatchT:
    """Return the batch, which `BatchDataset` has collated already."""
    return batch
