"""A loader whose worker processes fail goes on with fewer of them, and loads the same batches."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from groupdetr.data import transforms, worker_failures
from groupdetr.data.batch import ImageBatch
from groupdetr.data.dataset import DetectionDataset
from groupdetr.data.layouts import load
from groupdetr.data.loader import StepBatchSampler, ValidationLoader, training_loader
from groupdetr.structures.targets import Target
from tests.data.test_batch import assert_same

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")

STEPS = 8


def dataset_of(shapes: Path) -> DetectionDataset:
    return DetectionDataset(load(shapes).splits["train"].records, transforms.detr_transform(64), 3)


def batches(dataset: DetectionDataset, workers: int) -> Iterator[ImageBatch]:
    sampler = StepBatchSampler(len(dataset), 4, 3, 0, STEPS)
    return iter(training_loader(dataset, sampler, workers))


@pytest.fixture
def others() -> set[BaseProcess]:
    """The processes that other tests have left."""
    return set(multiprocessing.active_children())


def workers_beside(others: set[BaseProcess]) -> list[BaseProcess]:
    """Return the loader processes of this test."""
    return [process for process in multiprocessing.active_children() if process not in others]


def kill_a_worker(others: set[BaseProcess], number: int = signal.SIGKILL) -> None:
    worker, *_ = workers_beside(others)
    assert worker.pid is not None
    os.kill(worker.pid, number)
    worker.join(60)
    assert not worker.is_alive()


def assert_workers_end(others: set[BaseProcess]) -> None:
    for worker in workers_beside(others):
        worker.join(60)
    assert not workers_beside(others)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "groupdetr"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_all_batches_are_the_same_although_a_worker_is_killed(
    shapes: Path, caplog: pytest.LogCaptureFixture, others: set[BaseProcess], number: int
) -> None:
    dataset = dataset_of(shapes)
    expected = list(batches(dataset, 0))
    loaded = []
    for batch in batches(dataset, 2):
        loaded.append(batch)
        if len(loaded) == 2:
            kill_a_worker(others, number)
    for batch, expected_batch in zip(loaded, expected, strict=True):
        assert_same(batch, expected_batch)
    (warning,) = warnings_of(caplog)
    assert "1 loader process now, instead of 2 loader processes; --workers 1 avoids this" in warning
    reasons = {signal.SIGKILL: "memory ran out", signal.SIGBUS: "shared memory"}
    assert reasons[number] in warning


UNFINISHED = """
import sys
from groupdetr.data import transforms
from groupdetr.data.dataset import DetectionDataset
from groupdetr.data.layouts import load
from groupdetr.data.loader import ValidationLoader

records = load(sys.argv[1]).splits["train"].records
loader = ValidationLoader(DetectionDataset(records, transforms.val_transform(64)))
batches = iter(loader.batches(range(12), 2, 2))
next(batches)
if sys.argv[2] == "raise":
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize("end", ["return", "raise"])
def test_a_program_ends_although_its_workers_ignore_signals(shapes: Path, end: str) -> None:
    command = [sys.executable, "-c", UNFINISHED, str(shapes), end]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ("KeyboardInterrupt" in process.stderr) == (end == "raise"), process.stderr


def test_a_worker_that_dies_does_not_interrupt_a_step(
    shapes: Path, others: set[BaseProcess]
) -> None:
    """PyTorch raises its error at once, also in the middle of an optimizer step."""
    iterator = batches(dataset_of(shapes), 2)
    next(iterator)
    kill_a_worker(others)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        torch.ones(8).sum()


def test_an_evaluation_goes_on_with_fewer_workers_and_the_next_one_begins_with_them(
    shapes: Path, caplog: pytest.LogCaptureFixture, others: set[BaseProcess]
) -> None:
    loader = ValidationLoader(dataset_of(shapes))
    indices: list[int] = []
    for batch in loader.batches(range(12), 2, 2):
        if not indices:
            kill_a_worker(others)
        indices += batch.indices
    assert indices == list(range(12))
    again = [index for batch in loader.batches(range(12), 2, 2) for index in batch.indices]
    assert again == list(range(12))
    assert len(workers_beside(others)) == 1
    assert len(warnings_of(caplog)) == 1
    loader.close()


class StuckIterator:
    """The iterator of a data loader whose threads wait for the rest of a batch."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def _shutdown_workers(self) -> None:
        self.event.wait()


def test_workers_that_cannot_be_ended_do_not_stop_a_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_failures, "_SHUT_DOWN_SECONDS", 0.1)
    iterator = StuckIterator()
    worker_failures.shut_down(iterator)
    assert not iterator.event.is_set()
    iterator.event.set()


def test_workers_end_with_the_error_of_a_batch_and_with_an_iteration_that_is_left(
    shapes: Path, caplog: pytest.LogCaptureFixture, others: set[BaseProcess]
) -> None:
    """Workers whose iterator the garbage collector finds would wait until the program ends.

    A fault of a dataset is not taken for a failure of workers.
    """
    dataset = dataset_of(shapes)
    with pytest.raises(OSError, match="the fault") as caught:
        next(batches(FailingDataset(dataset.records, dataset.transform, 3), 2))
    assert_workers_end(others)
    assert caught.value is not None, "the error that is kept does not keep the workers"
    left = batches(dataset, 2)
    next(left)
    assert len(workers_beside(others)) == 2
    del left
    assert_workers_end(others)
    assert not warnings_of(caplog)


def test_processes_that_cannot_be_started_are_no_reason_to_end(
    shapes: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    dataset = dataset_of(shapes)
    for batch, expected in zip(batches(dataset, 2), batches(dataset, 0), strict=True):
        assert_same(batch, expected)
    (warning,) = warnings_of(caplog)
    assert "could not be started" in warning


class FullSharedMemory(DetectionDataset):
    """A dataset whose worker processes can get no shared memory."""

    @staticmethod
    def collate(samples: Sequence[tuple[Tensor, Target, int]]) -> ImageBatch:
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>")
        return DetectionDataset.collate(samples)


def test_without_shared_memory_the_process_itself_loads_the_images(
    shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = dataset_of(shapes)
    full = FullSharedMemory(dataset.records, dataset.transform, 3)
    for batch, expected in zip(batches(full, 2), batches(dataset, 0), strict=True):
        assert_same(batch, expected)
    (warning,) = warnings_of(caplog)
    for word in ("/dev/shm", "--workers 0", "--shm-size"):
        assert word in warning
    assert caplog.records[0].levelno == logging.WARNING


class FailingDataset(DetectionDataset):
    """A dataset with a fault of its own."""

    def __getitem__(self, index: Any) -> tuple[Tensor, Target, int]:
        raise OSError("the fault")


SMALL_SHARED_MEMORY = """
mount -t tmpfs -o size=100k tmpfs /dev/shm
exec "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file system of Linux")
@pytest.mark.parametrize("preset", ["conditional-detr-tiny", "petr-tiny"])
def test_a_training_with_little_shared_memory_says_so_in_a_line(
    preset: str, shapes: Path, scenes: Path, tmp_path: Path
) -> None:
    in_own_namespace = ["unshare", "-m"]
    probe = [*in_own_namespace, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            pytest.skip("this user cannot mount a file system")
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    data = scenes if preset == "petr-tiny" else shapes
    options = ["--steps", "2", "--batch", "4", "--workers", "2", "--threads", "1", "--no-check"]
    command = [sys.executable, "-m", "groupdetr", "train", str(data), "--model", preset, *options]
    process = subprocess.run(
        [*in_own_namespace, "sh", "-c", SMALL_SHARED_MEMORY, "sh", *command, "--out", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "--workers 0 avoids this" in process.stderr
    assert "Traceback" not in process.stderr


def test_only_what_is_sent_is_moved_to_shared_memory(shapes: Path) -> None:
    """Small tensors of images are sent as arrays, because each tensor needs a file."""
    dataset = dataset_of(shapes)
    batch = dataset.collate([dataset[0], dataset[1]])
    worker_failures.share_tensors(batch)
    assert batch.pixels.is_shared()
    assert not batch.sizes.is_shared()
    assert not any(target.boxes.is_shared() for target in batch.targets)
