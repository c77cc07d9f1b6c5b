"""The augmentation has PETR's numbers, and moves pixels where its matrices say."""

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.data.nuscenes.transforms import (
    Augmentation,
    ResizeCropFlip,
    no_augmentation,
    petr_augmentation,
)

FULL_SIZE, OUTPUT_SIZE = (900, 1600), (320, 800)


def random_augmentations(count=2000):
    generator = torch.Generator().manual_seed(0)
    return [petr_augmentation(generator) for _ in range(count)]


def test_random_values_have_the_published_ranges():
    augmentations = random_augmentations()
    transforms = [a.image_transform(FULL_SIZE, OUTPUT_SIZE) for a in augmentations]
    scales = [transform.scale for transform in transforms]
    assert 0.47 <= min(scales) < 0.472
    assert 0.623 < max(scales) <= 0.625
    assert np.mean([transform.flip for transform in transforms]) == pytest.approx(0.5, abs=0.05)
    rotations = [augmentation.rotation for augmentation in augmentations]
    assert 0.39 < max(rotations) <= 0.3925
    assert -0.3925 <= min(rotations) < -0.39
    world_scales = [augmentation.scale for augmentation in augmentations]
    assert 0.95 <= min(world_scales) < 0.951
    assert 1.049 < max(world_scales) <= 1.05
    for transform in transforms:
        assert transform.top == int(900 * transform.scale) - 320
        assert 0 <= transform.left <= max(0, int(1600 * transform.scale) - 800)
    assert max(transform.left for transform in transforms) > 150


def test_validation_uses_the_lower_part_at_full_width():
    augmentation = no_augmentation(torch.Generator())
    transform = augmentation.image_transform(FULL_SIZE, OUTPUT_SIZE)
    assert transform == ResizeCropFlip(0.5, 0, 130, OUTPUT_SIZE)
    assert (augmentation.world_matrix() == np.eye(4)).all()


def test_small_images_are_augmented_like_large_ones():
    for augmentation in random_augmentations(20):
        large = augmentation.image_transform(FULL_SIZE, OUTPUT_SIZE)
        small = augmentation.image_transform((180, 320), (64, 160))
        assert small.scale == pytest.approx(large.scale)
        assert small.top == pytest.approx(large.top / 5, abs=1)
        assert small.left == pytest.approx(large.left / 5, abs=1.3)


def resize_whole_then_crop(transform, image):
    """The steps of PETR's code: resize the whole image, crop it, then flip it."""
    height = int(image.shape[0] * transform.scale)
    width = int(image.shape[1] * transform.scale)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    right = transform.left + transform.size[1]
    bottom = transform.top + transform.size[0]
    cropped = np.asarray(resized.crop((transform.left, transform.top, right, bottom)))
    if transform.flip:
        cropped = cropped[:, ::-1]
    return cropped.astype(int)


@pytest.mark.parametrize("output", [(64, 160), (100, 160)])
def test_images_equal_those_of_the_published_steps(output):
    """A few bytes in a thousand may differ by one.

    At a height of 100 some images have black rows at the top, too.
    """
    image = np.random.default_rng(0).integers(0, 256, (180, 320, 3), dtype=np.uint8)
    for augmentation in [Augmentation(), *random_augmentations(30)]:
        transform = augmentation.image_transform((180, 320), output)
        difference = np.abs(transform.apply(image) - resize_whole_then_crop(transform, image))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 5e-3


@pytest.mark.parametrize("flip", [False, True])
def test_a_point_of_an_image_moves_as_the_matrix_says(flip):
    image = np.zeros((*FULL_SIZE, 3), dtype=np.uint8)
    image[600:608, 400:408] = 255
    augmentation = Augmentation(resize=1.2, crop_left=0.4, flip=flip)
    transform = augmentation.image_transform(FULL_SIZE, OUTPUT_SIZE)
    rows, columns = np.nonzero(transform.apply(image)[:, :, 0] > 128)
    u, v, _, _ = transform.matrix() @ (404, 604, 1, 1)
    assert columns.mean() + 0.5 == pytest.approx(u, abs=0.5)
    assert rows.mean() + 0.5 == pytest.approx(v, abs=0.5)


def test_depth_along_a_ray_is_not_scaled_with_the_world(samples):
    """As in PETR's code, the world is scaled, but not the depth that a projection gives."""
    augmentation = Augmentation(rotation=0.2, scale=1.05)
    matrices = samples[0].frame().lidar_to_image
    boxes = samples[0].truth.boxes
    augmented_boxes = augmentation.transform_boxes(boxes)
    for before, after in zip(matrices, augmentation.transform_projections(matrices)):
        depth_before = before[2, :3] @ boxes[:, :3].T + before[2, 3]
        depth_after = after[2, :3] @ augmented_boxes[:, :3].T + after[2, 3]
        assert np.allclose(depth_before, depth_after)
