"""Sizes follow DETR's rule at any scale; pixels and boxes agree with Pillow and torchvision."""

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

from groupdetr.data.layouts import load
from groupdetr.data.photometric import PhotometricDistortion
from groupdetr.data.transforms import (
    AugmentedImage,
    InputShape,
    LargeScaleJitter,
    RandomFlip,
    RandomResize,
    RandomSizeCrop,
    Transform,
    detr_transform,
    flip_transform,
    lsj_transform,
    resize_pixels,
    scale_length,
    val_transform,
)

SIDES = st.integers(1, 3000)
ALL_TRANSFORMS = [detr_transform, lsj_transform, flip_transform, val_transform]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """An image [3,H,W] of random pixels, channels last in memory as decoders return it."""
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=seeded(seed))
    return pixels.permute(2, 0, 1)


def augmented(transform: Transform, image: Tensor, seed: int = 0) -> Tensor:
    """The pixels of an image without objects, after a transform."""
    return transform(AugmentedImage(image, np.empty((0, 4), np.float32)), seeded(seed)).image


def expected_size(width: int, height: int, shortest: int, longest: int) -> tuple[int, int]:
    """DETR's rule, written independently: (width, height) of the result."""
    low, high = min(width, height), max(width, height)
    if high / low * shortest > longest:
        shortest = round(longest * low / high)
    shortest = max(1, shortest)
    other = max(1, int(shortest * high / low))
    return (shortest, other) if width <= height else (other, shortest)


@given(width=SIDES, height=SIDES)
def test_validation_size_is_shortest_800_longest_1333(width: int, height: int) -> None:
    size = RandomResize([800], 1333).size(height, width, seeded())
    expected = expected_size(width, height, 800, 1333)
    same = size == (expected[1], expected[0])
    assert same or (width == height and sorted(size) == sorted(expected))


def test_an_image_of_640_by_480_becomes_1066_by_800() -> None:
    assert tuple(augmented(val_transform(800), noise(480, 640)).shape) == (3, 800, 1066)


def test_imgsz_scales_all_sizes() -> None:
    assert scale_length(1333, 400) == round(1333 / 2)
    sides = set()
    for seed in range(60):
        sides.add(min(augmented(detr_transform(80), noise(90, 120), seed).shape[1:]))
    assert min(sides) >= 48
    assert max(sides) <= 80
    assert len(sides) > 5


@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 99))
def test_a_crop_lies_within_the_image_and_between_its_limits(
    width: int, height: int, seed: int
) -> None:
    top, left, rows, columns = RandomSizeCrop(384, 600).window(height, width, seeded(seed))
    for side, first, length in ((height, top, rows), (width, left, columns)):
        assert min(384, side) <= length <= min(600, side)
        assert 0 <= first <= side - length


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2000)])
def test_images_of_extreme_sizes_can_be_augmented(size: tuple[int, int]) -> None:
    for seed in range(20):
        assert min(augmented(detr_transform(96), noise(*size), seed).shape[1:]) >= 1


@pytest.mark.parametrize("shape", [InputShape(), InputShape(square=True, divisor=32)])
def test_only_extreme_images_are_not_cropped(shape: InputShape) -> None:
    """The resize before the crop would fill the memory: at full size, 10 x 1000 is 600 x 60,000."""
    sizes = []
    resized = AugmentedImage.resized

    def record(image: AugmentedImage, height: int, width: int) -> AugmentedImage:
        sizes.append((height, width))
        return resized(image, height, width)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AugmentedImage, "resized", record)
        for seed in range(20):
            augmented(detr_transform(96, shape), noise(2, 32), seed)
        assert len(sizes) > 20  # some images were resized twice
        sizes.clear()
        for seed in range(20):
            augmented(detr_transform(96, shape), noise(10, 1000), seed)
    assert len(sizes) == 20


def test_a_crop_is_dense_and_channels_last_in_memory() -> None:
    """Resizing a view of the larger image would take twice the time."""
    image = noise(60, 90)
    cropped = AugmentedImage(image, np.empty((0, 4), np.float32)).cropped(7, 11, 30, 40).image
    assert torch.equal(cropped, image[:, 7:37, 11:51])
    assert cropped.permute(1, 2, 0).is_contiguous()


def test_images_stay_channels_last_under_every_transform() -> None:
    for create in ALL_TRANSFORMS:
        for seed in range(20):
            image = augmented(create(96), noise(90, 120), seed)
            assert image.permute(1, 2, 0).is_contiguous(), create


def test_every_transform_can_be_sent_to_a_worker() -> None:
    image = noise(90, 120)
    for create in ALL_TRANSFORMS:
        unpickled = pickle.loads(pickle.dumps(create(96)))
        assert torch.equal(augmented(unpickled, image, 3), augmented(create(96), image, 3)), create


def test_methods_do_not_change_the_original_image() -> None:
    pixels, boxes = noise(60, 90), np.array([[10, 20, 70, 50]], np.float32)
    pixels_before, boxes_before = pixels.clone(), boxes.copy()
    image = AugmentedImage(pixels, boxes)
    for result in (
        image.flipped(),
        image.resized(30, 50),
        image.cropped(5, 5, 20, 20),
        image.padded(70, 90),
    ):
        result.image.zero_()
        result.boxes[:] = 0
    assert torch.equal(pixels, pixels_before)
    assert (boxes == boxes_before).all()


def test_from_original_maps_points_to_where_boxes_move() -> None:
    """Each box has no size and lies at a point, so it moves as the point does."""
    points = np.array([(0, 0), (90, 0), (30, 60), (90, 60), (45, 22)], dtype=np.float64)
    image = AugmentedImage(noise(60, 90), np.tile(points, 2).astype(np.float32))
    generator = np.random.default_rng(0)
    for _ in range(20):
        height, width = generator.integers(20, 99, 2).tolist()
        image = image.flipped().resized(height, width).padded(100, 100).flipped()
        moved = image.from_original.apply(points)
        np.testing.assert_allclose(image.boxes, np.tile(moved, 2), rtol=1e-4, atol=1e-3)
        cropped = image.cropped(10, 20, 70, 60)
        expected = (image.boxes[:, :2] - (20, 10)).clip(0, (60, 70))
        np.testing.assert_allclose(cropped.boxes[:, :2], expected, atol=1e-3)
        shifted = moved - (20, 10)
        np.testing.assert_allclose(cropped.from_original.apply(points), shifted, rtol=0, atol=1e-9)


# large-scale jitter, compared with Pillow


def jittered(
    image: Image.Image, side: int, scale: float, position: float, resample: Image.Resampling
) -> np.ndarray:
    """Large-scale jitter by Pillow: [side,side,.], grey where there is no image."""
    ratio = min(side * scale / image.height, side * scale / image.width)
    width, height = (max(1, round(length * ratio)) for length in (image.width, image.height))
    left, top = (round(max(length - side, 0) * position) for length in (width, height))
    resized = np.asarray(image.resize((width, height), resample))
    cropped = resized[top : top + side, left : left + side]
    padding = [(0, side - cropped.shape[0]), (0, side - cropped.shape[1]), (0, 0)]
    return np.pad(cropped, padding[: cropped.ndim], constant_values=128)


@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 1000))
def test_large_scale_jitter_agrees_with_pillow_in_pixels_and_boxes(
    width: int, height: int, seed: int
) -> None:
    """The scale is drawn first, then one position of the crop for both axes."""
    pixels = noise(height, width, seed)
    random = torch.rand(2, generator=seeded(seed), dtype=torch.float64)
    random_scale, position = random.tolist()
    boxes = np.array(
        [[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]], dtype=np.float32
    )
    image = LargeScaleJitter(48, 0.1, 2.0)(AugmentedImage(pixels, boxes), seeded(seed))
    pillow = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = 0.1 + 1.9 * random_scale
    expected = jittered(pillow, 48, scale, position, Image.Resampling.BILINEAR)
    assert image.size == (48, 48)
    assert np.abs(image.image.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2
    corners = boxes.reshape(-1, 2).astype(np.float64)
    moved = image.from_original.apply(corners).clip(0, 48)
    bottom_right = moved[1].clip(0, 48)  # of the image: no box lies on the grey
    np.testing.assert_allclose(
        image.boxes.reshape(-1, 2), moved.clip(0, bottom_right), rtol=0, atol=1e-3
    )


def test_large_scale_jitter_for_800_makes_squares_of_1024_at_scales_from_0_1_to_2() -> None:
    flip = lsj_transform(800)
    assert isinstance(flip, RandomFlip)
    jitter = flip.then
    assert isinstance(jitter, LargeScaleJitter)
    assert jitter == LargeScaleJitter(1024, 0.1, 2.0)
    assert jitter.size(480, 640, 1.0) == (768, 1024)
    assert jitter.size(480, 640, 2.0) == (1536, 2048)
    assert jitter.size(640, 427, 0.1) == (102, 68)
    assert jitter.size(3000, 2, 0.1) == (102, 1)
    assert lsj_transform(200) == RandomFlip(LargeScaleJitter(256, 0.1, 2.0))


@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_are_resized_as_by_torchvision(channels_last: bool) -> None:
    """Also the order of the result in memory is the same."""
    for height, width, new_height, new_width in ((48, 64, 30, 81), (31, 20, 31, 20), (1, 9, 5, 3)):
        image = noise(height, width)
        if not channels_last:
            image = image.contiguous()
        ours = resize_pixels(image, new_height, new_width)
        expected = F.resize(image, [new_height, new_width])
        assert torch.equal(ours, expected)
        assert ours.stride() == expected.stride()


# DETR's recipe, compared with Pillow's images

BOXES = st.lists(st.tuples(*[st.floats(0, 60, width=32)] * 4), max_size=4)


def random_integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


def detr_on_pillow(image: Image.Image, boxes: Tensor, imgsz: int) -> tuple[Image.Image, Tensor]:
    """DETR's recipe by Pillow and by torchvision's kernels for boxes.

    It draws from torch's global generator, in the order of v2.Compose([RandomHorizontalFlip(),
    RandomChoice([resize, Compose([resize, crop, resize])])]).
    """

    def resize(sizes: range | list[int], longest: int) -> None:
        nonlocal image, boxes
        scaled = [scale_length(size, imgsz) for size in sizes]
        shortest = scaled[random_integer(0, len(scaled) - 1)]
        width, height = expected_size(*image.size, shortest, longest)
        boxes, _ = F.resize_bounding_boxes(boxes, (image.height, image.width), [height, width])
        image = image.resize((width, height), Image.Resampling.BILINEAR)

    if torch.rand(1) < 0.5:
        boxes = F.horizontal_flip_bounding_boxes(
            boxes, tv_tensors.BoundingBoxFormat.XYXY, (image.height, image.width)
        )
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if torch.multinomial(torch.tensor([0.5, 0.5]), 1):
        resize([400, 500, 600], 1 << 40)
        low, high = scale_length(384, imgsz), scale_length(600, imgsz)
        height = random_integer(min(low, image.height), min(high, image.height))
        width = random_integer(min(low, image.width), min(high, image.width))
        top = random_integer(0, image.height - height)
        left = random_integer(0, image.width - width)
        boxes, _ = F.crop_bounding_boxes(
            boxes, tv_tensors.BoundingBoxFormat.XYXY, top, left, height, width
        )
        image = image.crop((left, top, left + width, top + height))
    resize(range(480, 801, 32), scale_length(1333, imgsz))
    return image, boxes


def assert_same_as_on_pillow(image: Image.Image, boxes: np.ndarray, imgsz: int, seed: int) -> None:
    """Boxes must be equal. Pixels may differ by rounding, by one level in each of two resizes."""
    torch.manual_seed(seed)
    expected, expected_boxes = detr_on_pillow(image, torch.from_numpy(boxes), imgsz)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    ours = detr_transform(imgsz)(AugmentedImage(pixels, boxes), seeded(seed))
    assert np.array_equal(ours.boxes, expected_boxes.numpy())
    our_pixels = ours.image.permute(1, 2, 0).numpy().astype(int)
    difference = np.abs(our_pixels - np.asarray(expected).astype(int))
    assert difference.max() <= 2
    assert difference.mean() < 0.2


@given(boxes=BOXES, seed=st.integers(0, 1000))
def test_random_draws_pixels_and_boxes_are_those_of_detr_on_pillow(
    boxes: list[tuple[float, ...]], seed: int
) -> None:
    pixels = noise(80, 110, seed).permute(1, 2, 0).numpy()
    corners = [(x, y, x + w / 2, y + h / 2) for x, y, w, h in boxes]
    array = np.array(corners, np.float32).reshape(-1, 4)
    assert_same_as_on_pillow(Image.fromarray(pixels), array, 96, seed)


def test_random_draws_pixels_and_boxes_of_real_images_are_those_of_detr_on_pillow(
    real_data: Path,
) -> None:
    for name in ("tiny_coco", "bccd"):
        for seed, record in enumerate(load(real_data / name).splits["train"].records[:10]):
            boxes = record.trainable_objects()[0].astype(np.float32)
            with Image.open(record.path) as image:
                assert_same_as_on_pillow(image.convert("RGB"), boxes, 800, seed)


def test_photometric_distortion_changes_colours_within_the_ranges_of_ssd() -> None:
    """A sixteenth of the images stays as it is. Boxes do not move."""
    grey = torch.full((40, 50, 3), 100, dtype=torch.uint8).permute(2, 0, 1)
    colour = noise(40, 50)
    boxes = np.array([[1, 2, 30, 20]], np.float32)
    transform = PhotometricDistortion(val_transform(40))
    brightness, unchanged = [], 0
    for seed in range(400):
        brightness.append(augmented(transform, grey, seed).float().mean().item())
        result = transform(AugmentedImage(colour, boxes), seeded(seed))
        assert np.array_equal(result.boxes, boxes)
        assert result.image.dtype == torch.uint8
        unchanged += torch.equal(result.image, colour)
    assert 10 <= unchanged <= 45
    # Changes of contrast may round to another grey.
    assert 86 <= min(brightness) < 92
    assert 108 < max(brightness) <= 114
    again = transform(AugmentedImage(colour, boxes), seeded(7)).image
    assert torch.equal(again, transform(AugmentedImage(colour, boxes), seeded(7)).image)
