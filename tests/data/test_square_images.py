"""Square images, sides that are multiples, and one size for all images of a training step."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from groupdetr.data.dataset import DetectionDataset, StepTransforms
from groupdetr.data.layouts import load
from groupdetr.data.loader import StepBatchSampler
from groupdetr.data.transforms import (
    PER_BATCH,
    PER_IMAGE,
    AugmentedImage,
    InputShape,
    LargeScaleJitter,
    RandomFlip,
    SquareResize,
    detr_transform,
    flip_transform,
    lsj_transform,
    resized_size,
    val_transform,
)
from groupdetr.errors import UsageError
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask
from groupdetr.tasks.detection2d.task import DetectionTask
from tests.dense import dense_masks

SIDES = st.integers(1, 3000)
SQUARE = InputShape(square=True, divisor=8)


@pytest.mark.parametrize(
    ("imgsz", "divisor", "offsets", "first", "last"),
    [
        (640, 64, PER_IMAGE, 448, 896),  # LW-DETR
        (384, 32, PER_BATCH, 224, 544),  # RF-DETR nano
        (560, 56, PER_BATCH, 280, 840),  # RF-DETR base
    ],
)
def test_the_squares_are_those_of_the_published_recipes(
    imgsz: int, divisor: int, offsets: range, first: int, last: int
) -> None:
    shape = InputShape(square=True, divisor=divisor)
    assert shape.sides(imgsz, offsets) == list(range(first, last + 1, divisor))
    assert shape.sides(imgsz, (0,)) == [imgsz]


def test_small_squares_are_left_out_but_never_the_size_that_was_asked_for() -> None:
    shape = InputShape(square=True, divisor=32)
    assert shape.sides(64, PER_BATCH) == [64, 96, 128, 160, 192, 224]
    assert shape.sides(32, PER_BATCH) == [32, 64, 96, 128, 160, 192]
    assert InputShape(square=True, divisor=32).sides(20, (0,)) == [32]


@given(height=SIDES, width=SIDES, imgsz=st.integers(16, 1400), divisor=st.integers(1, 70))
def test_sides_become_the_nearest_multiples_and_squares_have_one_side(
    height: int, width: int, imgsz: int, divisor: int
) -> None:
    usual = resized_size(height, width, imgsz, round(1333 * imgsz / 800))
    size = val_transform(imgsz, InputShape(divisor=divisor)).size(height, width, Generator())
    for side, usual_side in zip(size, usual):
        assert side % divisor == 0
        assert side == divisor or abs(side - usual_side) <= divisor / 2
    square = val_transform(imgsz, InputShape(True, divisor)).size(height, width, Generator())
    assert square[0] == square[1]
    assert square[0] % divisor == 0
    assert square[0] == divisor or abs(square[0] - imgsz) <= divisor / 2


def test_boxes_follow_the_pixels_into_squares() -> None:
    """A white rectangle stays where its box is, although the two sides have different factors."""
    pixels = torch.zeros(300, 500, 3, dtype=torch.uint8)
    pixels[90:200, 140:390] = 255
    image = AugmentedImage(
        pixels.permute(2, 0, 1), np.array([[140, 90, 390, 200]], dtype=np.float32)
    )
    transform = detr_transform(64, SQUARE, PER_IMAGE)
    sides = set()
    for seed in range(40):
        result = transform(image, Generator().manual_seed(seed))
        height, width = result.size
        assert height == width
        sides.add(width)
        x0, y0, x1, y1 = result.boxes[0].clip(0, width)
        if min(x1 - x0, y1 - y0) < 2:
            continue  # the crop has left little of it
        rows, columns = np.nonzero(np.asarray(result.image[0]) > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(np.array(found) - (x0, y0, x1, y1)).max() <= 1
    assert sides == {40, 48, 56, 64, 72, 80, 88, 96}


def test_the_augmentations_give_squares_that_the_network_accepts() -> None:
    assert flip_transform(60, SQUARE) == RandomFlip(SquareResize([64]))
    jitter = lsj_transform(60, SQUARE)
    assert isinstance(jitter, RandomFlip)
    assert isinstance(jitter.then, LargeScaleJitter)
    assert jitter.then.side == 80  # 1024/800 of 60 is 77, and 80 is a multiple of 8
    task_image = AugmentedImage(torch.zeros(3, 30, 50, dtype=torch.uint8), np.zeros((0, 4), "f"))
    assert jitter(task_image, Generator().manual_seed(0)).size == (80, 80)


def test_masks_and_boxes_agree_in_squares(shapes: Path) -> None:
    task = InstanceTask(load(shapes, masks=True), Settings(imgsz=64), 100, shape=SQUARE)
    compared = 0
    for index in range(len(task.train)):
        image, target, _ = task.train[index]
        assert image.shape[1:] == (64, 64)
        assert target.masks is not None
        for mask, (cx, cy, w, h) in zip(
            dense_masks(target.masks, (64, 64)), (64 * target.boxes).tolist(), strict=True
        ):
            pixels = mask.nonzero()
            first, last = pixels.amin(0).tolist(), pixels.amax(0).tolist()
            corners = [cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2]
            assert np.allclose([*first, last[0] + 1, last[1] + 1], corners, atol=2)
            compared += 1
    assert compared > 10


def test_all_images_of_a_step_have_one_size_in_all_processes_and_micro_batches(
    shapes: Path,
) -> None:
    """The size is drawn for the step: a resumed run has the same, and so has one process."""
    settings = Settings(imgsz=64, augment="flip", multi_scale="per-batch", seed=7)
    task = DetectionTask(load(shapes), settings, 100, shape=SQUARE)
    dataset = task.train
    sizes: dict[int, set[int]] = {}
    for rank in range(2):
        sampler = StepBatchSampler(
            len(dataset), 8, 7, 3, 15, rank=rank, ranks=2, accumulate=2, first_image=5
        )
        for number, micro_batch in enumerate(sampler):
            batch = dataset.collate([dataset[index] for index in micro_batch])
            assert not batch.padded
            sizes.setdefault(3 + number // 2, set()).add(batch.pixels.shape[-1])
    assert all(len(of_step) == 1 for of_step in sizes.values())
    assert len(set.union(*sizes.values())) > 4
    resumed = StepBatchSampler(len(dataset), 8, 7, 9, 10)
    (indices,) = resumed
    assert {dataset[index][0].shape[-1] for index in indices} == sizes[9]


def test_the_worst_case_of_a_step_is_the_largest_square(shapes: Path) -> None:
    settings = Settings(imgsz=64, multi_scale="per-batch")
    task = DetectionTask(load(shapes), settings, 100, shape=SQUARE)
    worst = task.worst_case(int)
    assert worst.single_size == worst.batch_size == (104, 104)
    assert isinstance(task.train.transform, StepTransforms)
    drawn = [task.train.transform.of_step(step) for step in range(50)]
    image = AugmentedImage(torch.zeros(3, 30, 50, dtype=torch.uint8), np.zeros((0, 4), "f"))
    areas = [math.prod(transform(image, Generator()).size) for transform in drawn]
    assert max(areas) == math.prod(worst.batch_size)


@pytest.mark.parametrize(
    ("settings", "shape", "remedy"),
    [
        (Settings(multi_scale="per-image"), InputShape(), "choose --multi-scale off"),
        (Settings(multi_scale="per-batch", augment="lsj"), SQUARE, "--augment detr or flip"),
    ],
)
def test_sizes_that_would_not_be_drawn_are_refused(
    settings: Settings, shape: InputShape, remedy: str, shapes: Path
) -> None:
    with pytest.raises(UsageError) as error:
        DetectionTask(load(shapes), settings, 100, shape=shape)
    assert remedy in error.value.remedy


def test_an_image_that_only_flips_into_a_square_has_two_variants(shapes: Path) -> None:
    """Then its features can be cached."""
    records = load(shapes).splits["train"].records
    assert DetectionDataset(records, flip_transform(64, SQUARE)).num_variants == 2
    assert DetectionDataset(records, val_transform(64, SQUARE)).num_variants == 1
    assert DetectionDataset(records, flip_transform(64, SQUARE, PER_IMAGE)).num_variants is None
