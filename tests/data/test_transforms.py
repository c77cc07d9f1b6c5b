"""Sizes follow DETR's rule, at any scale of its menu; pixels and boxes are those of Pillow and plain arithmetic."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Generator, Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from groupdetr.data.formats import load
from groupdetr.data.transforms import (
    CropBetween,
    Jitter,
    ResizeShortest,
    Transform,
    View,
    flipping,
    jittering,
    scaled,
    training,
    validation,
)

SIDES = st.integers(1, 3000)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """[3,H,W], channels last in memory as decoders leave it."""
    return torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=seeded(seed)
    ).permute(2, 0, 1)


def seen(transform: Transform, picture: Tensor, seed: int = 0) -> Tensor:
    """What is left of a picture without objects."""
    return transform(View(picture, np.empty((0, 4), np.float32)), seeded(seed)).picture


def rule(width: int, height: int, size: int, longest: int) -> tuple[int, int]:
    """The rule in the words of specification: (width, height) of the result."""
    low, high = min(width, height), max(width, height)
    if high / low * size > longest:
        size = round(longest * low / high)
    size = max(1, size)
    return (
        (size, max(1, int(size * high / low)))
        if width <= height
        else (max(1, int(size * high / low)), size)
    )


@given(width=SIDES, height=SIDES)
def test_validation_size_is_shortest_800_longest_1333(width: int, height: int) -> None:
    found = ResizeShortest([800], 1333).size(height, width, seeded())
    expected = rule(width, height, 800, 1333)
    assert found == (expected[1], expected[0]) or (
        width == height and sorted(found) == sorted(expected)
    )


def test_a_picture_of_640_by_480_becomes_1066_by_800() -> None:
    assert tuple(seen(validation(800), noise(480, 640)).shape) == (3, 800, 1066)


def test_imgsz_scales_the_whole_menu() -> None:
    assert scaled(1333, 400) == round(1333 / 2)
    sides = {min(seen(training(80), noise(90, 120), seed).shape[1:]) for seed in range(60)}
    assert min(sides) >= 48
    assert max(sides) <= 80
    assert len(sides) > 5


@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 99))
def test_a_crop_lies_within_the_picture_and_between_its_limits(
    width: int, height: int, seed: int
) -> None:
    top, left, rows, columns = CropBetween(384, 600).place(height, width, seeded(seed))
    for side, start, length in ((height, top, rows), (width, left, columns)):
        assert min(384, side) <= length <= min(600, side)
        assert 0 <= start <= side - length


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2000)])
def test_extreme_pictures_survive_augmentation(size: tuple[int, int]) -> None:
    for seed in range(20):
        assert min(seen(training(96), noise(*size), seed).shape[1:]) >= 1


def test_a_crop_lies_in_memory_as_the_fast_resize_wants_it() -> None:
    """A view of the larger picture would take it twice the time."""
    picture = noise(60, 90)
    cropped = View(picture, np.empty((0, 4), np.float32)).cropped(7, 11, 30, 40).picture
    assert torch.equal(cropped, picture[:, 7:37, 11:51])
    assert cropped.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("augment", [training, jittering, flipping, validation])
def test_pictures_stay_channels_last_under_every_augmentation(augment) -> None:  # type: ignore[no-untyped-def]
    for seed in range(20):
        assert seen(augment(96), noise(90, 120), seed).permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("augment", [training, jittering, flipping, validation])
def test_every_augmentation_can_be_sent_to_a_worker(augment) -> None:  # type: ignore[no-untyped-def]
    again = pickle.loads(pickle.dumps(augment(96)))
    assert torch.equal(seen(again, noise(90, 120), 3), seen(augment(96), noise(90, 120), 3))


def test_what_a_view_is_made_of_stays_as_it_was() -> None:
    picture, boxes = noise(60, 90), np.array([[10, 20, 70, 50]], np.float32)
    before = picture.clone(), boxes.copy()
    view = View(picture, boxes)
    for other in (
        view.flipped(),
        view.resized(30, 50),
        view.cropped(5, 5, 20, 20),
        view.padded(70, 90),
    ):
        other.picture.zero_()
        other.boxes[:] = 0
    assert torch.equal(picture, before[0])
    assert (boxes == before[1]).all()


def test_a_point_goes_where_the_picture_goes() -> None:
    """A box of no size in every corner, and the placement says the same."""
    points = np.array([(0, 0), (90, 0), (30, 60), (90, 60), (45, 22)], dtype=np.float64)
    view = View(noise(60, 90), np.tile(points, 2).astype(np.float32))
    generator = np.random.default_rng(0)
    for _ in range(20):
        view = (
            view.flipped()
            .resized(*(int(x) for x in generator.integers(20, 99, 2)))
            .padded(100, 100)
            .flipped()
        )
        np.testing.assert_allclose(
            view.boxes, np.tile(view.placement.of(points), 2), rtol=1e-4, atol=1e-3
        )
        moved = view.cropped(10, 20, 70, 60)
        np.testing.assert_allclose(
            moved.boxes[:, :2], (view.boxes[:, :2] - (20, 10)).clip(0, (60, 70)), atol=1e-3
        )
        shifted = view.placement.of(points) - (20, 10)
        np.testing.assert_allclose(moved.placement.of(points), shifted, rtol=0, atol=1e-9)


# large scale jitter, against Pillow


def jittered(
    picture: Image.Image, side: int, scale: float, place: float, how: Image.Resampling
) -> np.ndarray:
    """In the words of specification: [side,side,.], grey where there is no picture."""
    fitting = min(side * scale / picture.height, side * scale / picture.width)
    size = [max(1, round(length * fitting)) for length in (picture.width, picture.height)]
    left, top = (round(max(length - side, 0) * place) for length in size)
    resized = np.asarray(picture.resize((size[0], size[1]), how))
    seen = resized[top : top + side, left : left + side]
    grey = [(0, side - seen.shape[0]), (0, side - seen.shape[1]), (0, 0)]
    return np.pad(seen, grey[: seen.ndim], constant_values=128)


@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 1000))
def test_jitter_makes_the_square_that_pillow_would_and_puts_boxes_where_they_belong(
    width: int, height: int, seed: int
) -> None:
    """First the scale is drawn, then one place for both axes."""
    picture = noise(height, width, seed)
    scale, place = torch.rand(2, generator=seeded(seed), dtype=torch.float64).tolist()
    box = np.array(
        [[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]], dtype=np.float32
    )
    view = Jitter(48, 0.1, 2.0)(View(picture, box), seeded(seed))
    pillow = Image.fromarray(picture.permute(1, 2, 0).numpy())
    expected = jittered(pillow, 48, 0.1 + 1.9 * scale, place, Image.Resampling.BILINEAR)
    assert view.size == (48, 48)
    assert np.abs(view.picture.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
    whole = view.placement.of(box.reshape(-1, 2).astype(np.float64)).clip(0, 48)
    seen = whole[1].clip(0, 48)  # nothing lies on the grey
    np.testing.assert_allclose(view.boxes.reshape(-1, 2), whole.clip(0, seen), rtol=0, atol=1e-3)


def test_jitter_of_800_is_to_squares_of_1024_from_a_tenth_to_twice_what_fits() -> None:
    square = jittering(800).then  # type: ignore[attr-defined]
    assert square == Jitter(1024, 0.1, 2.0)
    assert square.size(480, 640, 1.0) == (768, 1024)
    assert square.size(480, 640, 2.0) == (1536, 2048)
    assert square.size(640, 427, 0.1) == (102, 68)
    assert square.size(3000, 2, 0.1) == (102, 1)
    assert jittering(200).then.side == 256  # type: ignore[attr-defined]


# against DETR's recipe on Pillow's pictures

BOXES = st.lists(st.tuples(*[st.floats(0, 60, width=32)] * 4), max_size=4)


def drawn(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def on_pillow(picture: Image.Image, boxes: Tensor, imgsz: int) -> tuple[Image.Image, Tensor]:
    """The recipe by Pillow and torchvision's kernels for boxes, with draws from torch's global generator in the order
    of v2.Compose([RandomHorizontalFlip(), RandomChoice([resize, Compose([resize, crop, resize])])])."""

    def resized(sizes: range | list[int], longest: int) -> None:
        nonlocal picture, boxes
        menu = [scaled(size, imgsz) for size in sizes]
        width, height = rule(*picture.size, menu[drawn(0, len(menu) - 1)], longest)
        boxes, _ = F.resize_bounding_boxes(boxes, (picture.height, picture.width), [height, width])
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)

    if torch.rand(1) < 0.5:
        boxes = F.horizontal_flip_bounding_boxes(
            boxes, tv_tensors.BoundingBoxFormat.XYXY, (picture.height, picture.width)
        )
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if torch.multinomial(torch.tensor([0.5, 0.5]), 1):
        resized([400, 500, 600], 1 << 40)
        least, most = scaled(384, imgsz), scaled(600, imgsz)
        height, width = (
            drawn(min(least, side), min(most, side)) for side in (picture.height, picture.width)
        )
        top, left = drawn(0, picture.height - height), drawn(0, picture.width - width)
        boxes, _ = F.crop_bounding_boxes(
            boxes, tv_tensors.BoundingBoxFormat.XYXY, top, left, height, width
        )
        picture = picture.crop((left, top, left + width, top + height))
    resized(range(480, 801, 32), scaled(1333, imgsz))
    return picture, boxes


def assert_as_on_pillow(picture: Image.Image, boxes: np.ndarray, imgsz: int, seed: int) -> None:
    """Pillow rounds as it likes, twice by one level at most; what it knows of boxes is exact."""
    torch.manual_seed(seed)
    expected, expected_boxes = on_pillow(picture, torch.from_numpy(boxes), imgsz)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    view = training(imgsz)(View(pixels, boxes), seeded(seed))
    assert np.array_equal(view.boxes, expected_boxes.numpy())
    levels = np.abs(
        view.picture.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected).astype(int)
    )
    assert levels.max() <= 2
    assert levels.mean() < 0.2


@given(boxes=BOXES, seed=st.integers(0, 1000))
def test_draws_pixels_and_boxes_are_those_of_the_recipe_on_pillow(
    boxes: list[tuple[float, ...]], seed: int
) -> None:
    pixels = noise(80, 110, seed).permute(1, 2, 0).numpy()
    corners = np.array([(x, y, x + w / 2, y + h / 2) for x, y, w, h in boxes], np.float32).reshape(
        -1, 4
    )
    assert_as_on_pillow(Image.fromarray(pixels), corners, 96, seed)


def test_draws_pixels_and_boxes_of_real_pictures_are_those_of_the_recipe_on_pillow(
    real_data: Path,
) -> None:
    for name in ("tiny_coco", "bccd"):
        for seed, record in enumerate(load(real_data / name).splits["train"].records[:10]):
            with Image.open(record.path) as image:
                assert_as_on_pillow(
                    image.convert("RGB"), record.training()[0].astype(np.float32), 800, seed
                )
