"""The images of a training step depend on the seed and the step alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from groupdetr.data import transforms
from groupdetr.data.batch import ImageBatch
from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.findings import RefusedError
from groupdetr.data.layouts import load
from groupdetr.data.loader import StepBatchSampler, ValidationLoader, training_loader
from groupdetr.data.synthetic import SyntheticConfig, write
from groupdetr.structures.targets import Target
from tests.data.test_batch import assert_same

SIZES = st.integers(1, 40)


@given(images=SIZES, batch=SIZES, steps=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_epoch_takes_every_image_once(images: int, batch: int, steps: int, seed: int) -> None:
    samples: list[SampleIndex] = []
    for micro_batch in StepBatchSampler(images, batch, seed, 0, steps):
        samples += micro_batch
    assert len(samples) == steps * batch
    for epoch in range(len(samples) // images):
        samples_of_epoch = samples[epoch * images : (epoch + 1) * images]
        assert sorted(sample.index for sample in samples_of_epoch) == list(range(images))
        assert {sample.epoch for sample in samples_of_epoch} == {epoch}


@given(images=SIZES, batch=SIZES, start=st.integers(0, 10))
def test_a_resumed_run_takes_the_same_images(images: int, batch: int, start: int) -> None:
    resumed = list(StepBatchSampler(images, batch, 3, start, 20))
    assert resumed == list(StepBatchSampler(images, batch, 3, 0, 20))[start:]


@given(size=st.integers(1, 4), images=SIZES, ranks=st.integers(1, 4), accumulate=st.integers(1, 3))
def test_all_ranks_and_micro_batches_together_take_the_images_of_one_process(
    images: int, size: int, ranks: int, accumulate: int
) -> None:
    batch = size * ranks * accumulate
    expected = StepBatchSampler(images, batch, 5, 0, 4)
    by_rank: list[list[list[SampleIndex]]] = []
    for rank in range(ranks):
        sampler = StepBatchSampler(
            images, batch, 5, 0, 4, rank=rank, ranks=ranks, accumulate=accumulate
        )
        by_rank.append(list(sampler))
    for step, expected_samples in enumerate(expected):
        samples: list[SampleIndex] = []
        for of_rank in by_rank:
            for micro_batch in of_rank[step * accumulate : (step + 1) * accumulate]:
                assert len(micro_batch) == size
                samples += micro_batch
        found = sorted((sample.epoch, sample.index) for sample in samples)
        assert found == sorted((sample.epoch, sample.index) for sample in expected_samples)


@pytest.mark.parametrize(("workers", "masks"), [(1, False), (2, True)])
def test_any_number_of_workers_loads_the_same_batches(
    shapes: Path, workers: int, masks: bool
) -> None:
    records = load(shapes, masks=masks).splits["train"].records
    create = transforms.lsj_transform if masks else transforms.detr_transform

    def batches(workers: int, start: int = 0) -> Iterator[ImageBatch]:
        dataset = DetectionDataset(records, create(64), seed=3, cache_bytes=1 << 16)
        sampler = StepBatchSampler(len(records), 4, 3, start, 12)
        return iter(training_loader(dataset, sampler, workers))

    expected = list(batches(0))
    assert len(expected) == 12
    for batch, expected_batch in zip(batches(workers), expected, strict=True):
        assert_same(batch, expected_batch)
    for batch, expected_batch in zip(batches(workers, start=9), expected[9:], strict=True):
        assert_same(batch, expected_batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_raises_the_same_error_with_and_without_workers(
    tmp_path: Path, workers: int
) -> None:
    write(SyntheticConfig(image_size=48, num_classes=3), tmp_path, {"train": 8, "val": 2})
    records = load(tmp_path).splits["train"].records
    path = records[5].path
    path.write_bytes(path.read_bytes()[:200])
    dataset = DetectionDataset(records, transforms.val_transform(48))
    loader = ValidationLoader(dataset).batches(range(8), 2, workers)
    with pytest.raises(RefusedError) as caught:
        list(loader)
    assert caught.value.finding.code == "truncated-image"
    assert str(path) in caught.value.where
    assert "Traceback" not in str(caught.value)


class ProcessIdDataset(DetectionDataset):
    """Returns the id of the process that loads an image instead of the index of the image."""

    def __getitem__(self, index: SampleIndex | int) -> tuple[Tensor, Target, int]:
        image, target, _ = super().__getitem__(index)
        return image, target, os.getpid()


def test_every_evaluation_uses_the_same_worker_processes(shapes: Path) -> None:
    """Workers that are not forked take seconds to start."""
    records = load(shapes).splits["val"].records
    loader = ValidationLoader(ProcessIdDataset(records, transforms.val_transform(48)))

    def process_ids() -> list[int]:
        ids: list[int] = []
        for batch in loader.batches(range(6), 1, 2):
            ids += batch.indices
        return ids

    first = process_ids()
    assert len(set(first)) == 2
    assert os.getpid() not in first
    assert set(process_ids()) == set(first)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_evaluation_does_not_affect_the_next_one(shapes: Path, workers: int) -> None:
    records = load(shapes).splits["val"].records
    loader = ValidationLoader(DetectionDataset(records, transforms.val_transform(48)))

    def indices(max_batches: int) -> list[list[int]]:
        batches = loader.batches(range(1, 6), 2, workers)
        return [batch.indices for batch in islice(batches, max_batches)]

    assert indices(1) == [[1, 2]]
    assert indices(9) == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("workers", [0, 1])
def test_other_images_or_another_batch_size_need_another_loader(shapes: Path, workers: int) -> None:
    records = load(shapes).splits["val"].records
    loader = ValidationLoader(DetectionDataset(records, transforms.val_transform(48)))
    for images, batch_size in ((range(4), 2), (range(0, 6, 2), 2), (range(4), 3)):
        batches = [batch.indices for batch in loader.batches(images, batch_size, workers)]
        assert len(batches[0]) == batch_size
        assert [index for indices in batches for index in indices] == list(images)


@pytest.mark.parametrize(("device", "is_pinned"), [("cpu", False), ("cuda:0", True)])
def test_only_batches_for_a_gpu_lie_in_pinned_memory(
    device: str, is_pinned: bool, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes memory of a GPU, which may be full while the CPU of its machine trains."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    records = load(shapes).splits["val"].records
    dataset = DetectionDataset(records, transforms.val_transform(48))
    sampler = StepBatchSampler(len(records), 2, 0, 0, 1)
    in_training = training_loader(dataset, sampler, 0, torch.device(device))
    in_validation = ValidationLoader(dataset).batches(range(4), 2, 0, torch.device(device))
    assert in_training.loader.pin_memory is is_pinned
    assert in_validation.loader.pin_memory is is_pinned
