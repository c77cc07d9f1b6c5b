"""No batch of a training is larger than the worst case computed from the records."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from groupdetr.data.batch import collate
from groupdetr.data.dataset import SampleIndex
from groupdetr.data.layouts import load
from groupdetr.data.own_transform import OwnTransform
from groupdetr.data.records import Record
from groupdetr.data.transforms import AugmentedImage, largest_sizes
from groupdetr.data.worst_case import worst_case
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.task import AUGMENTATIONS, DetectionTask
from tests.dense import dense_masks

SIDES = st.integers(20, 900)


def augmented_sizes(
    width: int, height: int, imgsz: int, augment: str, times: int = 40
) -> list[tuple[int, int]]:
    """Heights and widths of an image after random augmentation."""
    pixels = torch.zeros(1, height, width, dtype=torch.uint8)
    image = AugmentedImage(pixels, np.zeros((0, 4), dtype=np.float32))
    transform = AUGMENTATIONS[augment](imgsz)
    generator = torch.Generator().manual_seed(0)
    return [transform(image, generator).size for _ in range(times)]


@settings(max_examples=60, deadline=None)
@given(
    width=SIDES, height=SIDES, imgsz=st.integers(20, 90), augment=st.sampled_from([*AUGMENTATIONS])
)
def test_no_augmented_image_exceeds_the_largest_sizes(
    width: int, height: int, imgsz: int, augment: str
) -> None:
    largest = largest_sizes(height, width, imgsz, augment)
    for size in augmented_sizes(width, height, imgsz, augment):
        assert size[0] <= max(largest_height for largest_height, _ in largest)
        assert size[1] <= max(largest_width for _, largest_width in largest)
        assert math.prod(size) <= max(math.prod(other) for other in largest)


@pytest.mark.parametrize("shape", [(80, 60), (150, 30)])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_some_augmented_images_are_nearly_as_large(augment: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    width, height = shape
    largest = largest_sizes(height, width, 40, augment)
    sizes = augmented_sizes(width, height, 40, augment, times=1000)
    for axis in (0, 1):
        assert max(size[axis] for size in sizes) >= 0.9 * max(size[axis] for size in largest)


def record(width: int, height: int, objects: int) -> Record:
    boxes = np.tile([0.0, 0.0, 5.0, 5.0], (objects, 1))
    zeros = np.zeros(objects)
    labels, crowd = zeros.astype(np.int64), zeros.astype(bool)
    return Record(
        1, Path("a.jpg"), "a.jpg", width, height, boxes, labels, zeros, crowd, (None,) * objects
    )


def test_a_batch_may_hold_the_highest_and_the_widest_image() -> None:
    records = [record(80, 60, 2), record(60, 80, 3), record(60, 60, 1)]
    worst = worst_case(records, 60, augment="none", query_count=int)
    assert worst.single_size in ((60, 80), (80, 60))
    assert worst.batch_size == (80, 80)
    assert (worst.pixels(1), worst.pixels(3)) == (60 * 80, 3 * 80 * 80)


def test_the_number_of_objects_has_the_largest_query_count_and_crowds_do_not_count() -> None:
    crowded = record(60, 60, 9)
    crowded.crowd[:] = True
    records = [record(60, 60, count) for count in (4, 7)] + [crowded]
    assert worst_case(records, 60, augment="none", query_count=int).objects == 7
    assert worst_case(records, 60, augment="none", query_count=lambda n: n % 5).objects == 4
    assert worst_case(records, 60, augment="none", query_count=lambda n: n * 0).objects == 7, (
        "the largest of several with the same query count"
    )


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_no_batch_of_a_dataset_exceeds_the_worst_case(shapes: Path, augment: str) -> None:
    options = replace(Settings(imgsz=40), augment=augment)
    task = DetectionTask(load(shapes), options, 100)
    worst = worst_case(task.train.records, 40, augment, int)
    for size in (1, 3):
        worst_batch = worst.batch(size)
        batch = collate([task.train[index] for index in range(size)])
        assert worst_batch.pixels.shape[0] == len(worst_batch.targets) == size
        assert all(a >= b for a, b in zip(worst_batch.pixels.shape, batch.pixels.shape))
        assert max(map(len, batch.targets)) <= len(worst_batch.targets[0])
        assert all(target.masks is None for target in worst_batch.targets)


def test_masks_of_the_worst_case_fill_its_boxes(shapes: Path) -> None:
    """A mask reaches beyond its box by less than a pixel on each side."""
    worst = worst_case(load(shapes, masks=True).splits["train"].records, 40, "lsj", int)
    assert worst.batch_size == worst.single_size == (51, 51)
    for target in worst.batch(2).targets:
        assert target.masks is not None
        masks = dense_masks(target.masks, (51, 51))
        boxes = (51 * target.boxes).tolist()
        for mask, (cx, cy, w, h) in zip(masks, boxes, strict=True):
            pixels = mask.nonzero()
            first, last = pixels.amin(0), pixels.amax(0)
            before = torch.tensor([cy - h / 2, cx - w / 2]) - first
            after = last + 1 - torch.tensor([cy + h / 2, cx + w / 2])
            beyond = torch.cat([before, after]).tolist()
            assert min(beyond) >= 0
            assert max(beyond) < 1
            assert mask.sum() == (last - first + 1).prod()


@pytest.mark.parametrize("name", ["detr+mosaic", "lsj+mosaic+photometric", "flip+mosaic", "detr"])
def test_mosaics_and_own_transforms_are_in_the_worst_case(name: str, shapes: Path) -> None:
    """A mosaic has the objects of four images, and a transform may give images of any shape."""
    task = DetectionTask(load(shapes), replace(Settings(imgsz=40), augment=name), 100)
    if name == "detr":
        strip = v2.RandomChoice([v2.CenterCrop((4, 48)), v2.CenterCrop((48, 4)), v2.Identity()])
        task.train.own_transform = OwnTransform(strip)
    worst = task.worst_case(int)
    most = 0
    for index in range(len(task.train)):
        for epoch in range(12):
            image, target, _ = task.train[SampleIndex(epoch, index)]
            height, width = image.shape[1:]
            assert height <= worst.batch_size[0]
            assert width <= worst.batch_size[1]
            assert height * width <= math.prod(worst.single_size)
            most = max(most, len(target))
    assert most <= worst.objects
    single = max(int(record.trainable.sum()) for record in task.train.records)
    assert (most > single) == task.augmentation.mosaic
