"""Sizes follow DETR's rule, at any scale of its menu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from groupdetr.data.formats import load
from groupdetr.data.transforms import RandomCropBetween, ResizeShortest, scaled, training, validation

SIDES = st.integers(1, 3000)


def rule(width: int, height: int, size: int, longest: int) -> tuple[int, int]:
    """The rule in the words of specification: (width, height) of the result."""
    low, high = min(width, height), max(width, height)
    if high / low * size > longest:
        size = round(longest * low / high)
    size = max(1, size)
    return (size, max(1, int(size * high / low))) if width <= height else (max(1, int(size * high / low)), size)


@given(width=SIDES, height=SIDES)
def test_validation_size_is_shortest_800_longest_1333(width: int, height: int) -> None:
    resize = ResizeShortest([800], 1333)
    image = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
    found = resize.make_params([image])["size"]
    expected = rule(width, height, 800, 1333)
    assert found == (expected[1], expected[0]) or (width == height and sorted(found) == sorted(expected))


def test_a_picture_of_640_by_480_becomes_1066_by_800() -> None:
    picture = validation(800)(tv_tensors.Image(torch.zeros(3, 480, 640, dtype=torch.uint8)))
    assert tuple(picture.shape) == (3, 800, 1066)


def test_imgsz_scales_the_whole_menu() -> None:
    assert scaled(1333, 400) == round(1333 / 2)
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        seen.add(min(training(80)(tv_tensors.Image(torch.zeros(3, 90, 120, dtype=torch.uint8))).shape[1:]))
    assert min(seen) >= 48
    assert max(seen) <= 80
    assert len(seen) > 5


@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 99))
def test_a_crop_lies_within_the_picture_and_between_its_limits(width: int, height: int, seed: int) -> None:
    torch.manual_seed(seed)
    crop = RandomCropBetween(384, 600).make_params([torch.empty(3, height, width, device="meta")])
    for side, start, length in ((height, "top", "height"), (width, "left", "width")):
        assert min(384, side) <= crop[length] <= min(600, side)
        assert 0 <= crop[start] <= side - crop[length]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2000)])
def test_extreme_pictures_survive_augmentation(size: tuple[int, int]) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        picture = training(96)(tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8)))
        assert min(picture.shape[1:]) >= 1


def channels_last(height: int, width: int) -> tv_tensors.Image:
    """Noise as a decoder leaves it in memory."""
    return tv_tensors.Image(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1))


def test_a_crop_lies_in_memory_as_the_fast_resize_wants_it() -> None:
    """A view of the larger picture would take it more than twice the time."""
    picture = channels_last(60, 90)
    params = {"top": 7, "left": 11, "height": 30, "width": 40}
    cropped = RandomCropBetween(30, 40).transform(picture, params)
    assert torch.equal(cropped, picture[:, 7:37, 11:51])
    assert cropped.permute(1, 2, 0).is_contiguous()
    assert type(cropped) is tv_tensors.Image


def test_augmented_pictures_stay_channels_last() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        assert training(96)(channels_last(90, 120)).permute(1, 2, 0).is_contiguous()


def assert_as_on_pillow(picture: Image.Image, corners: np.ndarray, imgsz: int, seed: int) -> None:
    """Pillow's resize rounds as it likes: twice by one level at most."""
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(corners).float(), format="XYXY", canvas_size=(picture.height, picture.width)
    )
    torch.manual_seed(seed)
    expected, expected_boxes = training(imgsz)(picture, boxes)
    torch.manual_seed(seed)
    found, found_boxes = training(imgsz)(tv_tensors.Image(F.pil_to_tensor(picture)), boxes)
    assert torch.equal(found_boxes, expected_boxes)
    levels = (found.as_subclass(Tensor).int() - F.pil_to_tensor(expected).int()).abs()
    assert levels.max() <= 2
    assert levels.float().mean() < 0.2


@pytest.mark.parametrize("seed", range(8))
def test_pixels_and_boxes_are_those_of_the_same_transforms_on_pillow(seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (80, 110, 3), dtype=np.uint8)
    assert_as_on_pillow(Image.fromarray(noise), np.array([[10.0, 20, 70, 60], [0, 0, 110, 80]]), 96, seed)


def test_pixels_and_boxes_of_real_pictures_are_those_of_the_same_transforms_on_pillow(real_data: Path) -> None:
    for name in ("tiny_coco", "bccd"):
        for seed, record in enumerate(load(real_data / name).splits["train"].records[:10]):
            with Image.open(record.path) as image:
                assert_as_on_pillow(image.convert("RGB"), record.training()[0], 800, seed)
