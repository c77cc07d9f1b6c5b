"""A sample depends on (seed, epoch, index) alone, and its boxes stay on the objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.data import transforms
from groupdetr.data.dataset import DetectionDataset, SampleIndex
from groupdetr.data.layouts import load
from groupdetr.data.records import Record
from groupdetr.data.transforms import AugmentedImage, Transform

CreateTransform = Callable[[int], Transform]


@pytest.mark.parametrize("create", [transforms.detr_transform, transforms.lsj_transform])
def test_augmentation_depends_on_seed_epoch_and_image_alone(
    shapes: Path, create: CreateTransform
) -> None:
    records = load(shapes).splits["train"].records
    dataset = DetectionDataset(records, create(48), seed=1)
    with_cache = DetectionDataset(records, create(48), seed=1, cache_bytes=1 << 20)
    torch.manual_seed(1)
    expected = [dataset[SampleIndex(epoch, 3)] for epoch in range(12)]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    for epoch in reversed(range(12)):
        image, target, _ = with_cache[SampleIndex(epoch, 3)]
        torch.testing.assert_close(image, expected[epoch][0], rtol=0, atol=0)
        torch.testing.assert_close(target.boxes, expected[epoch][1].boxes, rtol=0, atol=0)
    # The global generator is untouched, so dropout is not affected.
    assert torch.equal(torch.get_rng_state(), before)
    assert any(not torch.equal(expected[0][0], other[0]) for other in expected[1:])


def test_the_generator_of_a_sample_is_seeded_by_seed_epoch_and_index(shapes: Path) -> None:
    """The way in which it is seeded must not change, so that old runs can be resumed."""
    seeds: list[int] = []

    def transform(image: AugmentedImage, generator: torch.Generator) -> AugmentedImage:
        seeds.append(generator.initial_seed())
        return image

    dataset = DetectionDataset(load(shapes).splits["train"].records, transform, seed=7)
    for epoch in (0, 5):
        assert dataset[SampleIndex(epoch, 2)]
    assert seeds == [
        int(np.random.SeedSequence((7, epoch, 2)).generate_state(1)[0]) for epoch in (0, 5)
    ]


def test_loading_images_does_not_seed_the_gpu(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise dropout would depend on whether workers or the training process load the images."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(0)
    assert seeded, "this is how torch seeds GPUs"
    seeded.clear()
    dataset = DetectionDataset(load(shapes).splits["train"].records, transforms.detr_transform(48))
    assert dataset[SampleIndex(1, 3)]
    assert not seeded


def record_of(path: Path, boxes: np.ndarray) -> Record:
    """A record of an image of 90 x 60 pixels whose objects have the labels 0, 1, 2, ..."""
    count = len(boxes)
    ones = np.ones(count)
    ids = tuple(range(1, count + 1))
    return Record(1, path, path.name, 90, 60, boxes, np.arange(count), ones, ones > 1, ids)


def test_objects_that_a_crop_leaves_without_area_are_dropped(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.png")
    outside, inside, half_inside = [50.0, 10, 20, 20], [0.0, 0, 20, 20], [30.0, 20, 20, 20]
    record = record_of(tmp_path / "a.png", np.array([outside, inside, half_inside]))
    dataset = DetectionDataset([record], lambda image, _: image.cropped(0, 0, 60, 40))
    _, target, _ = dataset[0]
    assert target.labels.tolist() == [1, 2]
    expected = torch.tensor(
        [[10 / 40, 10 / 60, 20 / 40, 20 / 60], [35 / 40, 30 / 60, 10 / 40, 20 / 60]]
    )
    torch.testing.assert_close(target.boxes, expected)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_decoded_images_are_channels_last_in_memory(shapes: Path, cache_bytes: int) -> None:
    """Resizing is fastest for this layout."""
    records = load(shapes).splits["train"].records
    dataset = DetectionDataset(records, transforms.val_transform(48), cache_bytes=cache_bytes)
    first, second = dataset.decode(3), dataset.decode(3)
    assert first.permute(1, 2, 0).is_contiguous()
    assert torch.equal(first, second)
    assert (first is second) == bool(cache_bytes)


@pytest.mark.parametrize(("cache_bytes", "expected"), [(10_000, 6912), (1 << 20, 24 * 6912)])
def test_the_cache_does_not_exceed_its_announced_size(
    shapes: Path, cache_bytes: int, expected: int
) -> None:
    """An image takes 6912 bytes."""
    records = load(shapes).splits["train"].records
    dataset = DetectionDataset(records, transforms.val_transform(48), cache_bytes=cache_bytes)
    announced = dataset.max_cache_bytes
    for index in range(len(dataset)):
        dataset.decode(index)
    used = sum(image.nbytes for image in dataset.cache.values())
    assert used == expected <= announced <= cache_bytes
