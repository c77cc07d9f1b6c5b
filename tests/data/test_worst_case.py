"""No batch of a training is larger than the worst case that is read off the records."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.data.batch import collate
from groupdetr.data.formats import load
from groupdetr.data.records import Record
from groupdetr.data.transforms import View, largest
from groupdetr.data.worst_case import worst_of
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.task import AUGMENTATIONS, DetectionTask
from tests.dense import dense_masks

SIDES = st.integers(20, 900)


def drawn(
    width: int, height: int, imgsz: int, augment: str, times: int = 40
) -> list[tuple[int, int]]:
    """Heights and widths that training makes of a picture."""
    view = View(
        torch.zeros(1, height, width, dtype=torch.uint8), np.zeros((0, 4), dtype=np.float32)
    )
    transform, generator = AUGMENTATIONS[augment](imgsz), torch.Generator().manual_seed(0)
    return [transform(view, generator).size for _ in range(times)]


@settings(max_examples=60, deadline=None)
@given(
    width=SIDES, height=SIDES, imgsz=st.integers(20, 90), augment=st.sampled_from([*AUGMENTATIONS])
)
def test_no_draw_is_higher_wider_or_larger(
    width: int, height: int, imgsz: int, augment: str
) -> None:
    most = largest(height, width, imgsz, augment)
    for size in drawn(width, height, imgsz, augment):
        assert size[0] <= max(high for high, _ in most)
        assert size[1] <= max(wide for _, wide in most)
        assert math.prod(size) <= max(map(math.prod, most))


@pytest.mark.parametrize("shape", [(80, 60), (150, 30)])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_and_some_are_nearly_as_large(augment: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    width, height = shape
    most = largest(height, width, 40, augment)
    sizes = drawn(width, height, 40, augment, times=1000)
    for axis in (0, 1):
        assert max(size[axis] for size in sizes) >= 0.9 * max(size[axis] for size in most)


def record(width: int, height: int, objects: int) -> Record:
    boxes = np.tile([0.0, 0.0, 5.0, 5.0], (objects, 1))
    zeros = np.zeros(objects)
    labels, crowd = zeros.astype(np.int64), zeros.astype(bool)
    return Record(
        1, Path("a.jpg"), "a.jpg", width, height, boxes, labels, zeros, crowd, (None,) * objects
    )


def test_a_high_picture_may_stand_beside_a_wide_one() -> None:
    records = [record(80, 60, 2), record(60, 80, 3), record(60, 60, 1)]
    worst = worst_of(records, 60, augment="none", burden=int)
    assert worst.alone in ((60, 80), (80, 60))
    assert worst.together == (80, 80)
    assert (worst.pixels(1), worst.pixels(3)) == (60 * 80, 3 * 80 * 80)


def test_the_most_objects_are_those_that_weigh_most_and_crowds_are_none() -> None:
    crowded = record(60, 60, 9)
    crowded.crowd[:] = True
    records = [record(60, 60, count) for count in (4, 7)] + [crowded]
    assert worst_of(records, 60, augment="none", burden=int).objects == 7
    assert worst_of(records, 60, augment="none", burden=lambda n: n % 5).objects == 4
    assert worst_of(records, 60, augment="none", burden=lambda n: n * 0).objects == 7, (
        "the most of those alike"
    )


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_no_batch_of_a_data_set_passes_it(shapes: Path, augment: str) -> None:
    chosen = replace(Settings(imgsz=40), augment=augment)
    task = DetectionTask(load(shapes), chosen, 100)
    worst = worst_of(task.train.records, 40, augment, int)
    for size in (1, 3):
        expected = worst.batch(size)
        batch = collate([task.train[index] for index in range(size)])
        assert expected.pixels.shape[0] == len(expected.targets) == size
        assert all(a >= b for a, b in zip(expected.pixels.shape, batch.pixels.shape))
        assert max(map(len, batch.targets)) <= len(expected.targets[0])
        assert all(target.masks is None for target in expected.targets)


def test_where_objects_have_masks_those_of_the_worst_case_fill_its_boxes(shapes: Path) -> None:
    worst = worst_of(load(shapes, masks=True).splits["train"].records, 40, "lsj", int)
    assert worst.together == worst.alone == (51, 51)
    for target in worst.batch(2).targets:
        assert target.masks is not None
        for mask, (cx, cy, w, h) in zip(
            dense_masks(target.masks, (51, 51)), (51 * target.boxes).tolist(), strict=True
        ):
            found = mask.nonzero()
            expected = torch.tensor([cy - h / 2, cx - w / 2, cy + h / 2, cx + w / 2])
            beyond = (
                torch.cat([-found.amin(0), found.amax(0) + 1])
                - expected * torch.tensor([-1, -1, 1, 1])
            ).tolist()
            assert min(beyond) >= 0
            assert max(beyond) < 1
            assert mask.sum() == (found.amax(0) - found.amin(0) + 1).prod()
