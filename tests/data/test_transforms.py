"""Sizes follow DETR's rule, at any scale of its menu."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

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
