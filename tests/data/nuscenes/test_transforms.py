"""Claims about augmentation: the published numbers, one draw for all views, and pictures that go where matrices say."""

import numpy as np
import pytest
import torch
from PIL import Image

from groupdetr.data.nuscenes.transforms import Augmentation, Crop, published, unchanged

FULL, OUTPUT = (900, 1600), (320, 800)


def draws(count=2000):
    generator = torch.Generator().manual_seed(0)
    return [published(generator) for _ in range(count)]


def test_what_is_drawn_is_what_was_published():
    drawn = draws()
    crops = [augmentation.crop(FULL, OUTPUT) for augmentation in drawn]
    scales = [crop.scale for crop in crops]
    assert 0.47 <= min(scales) < 0.472
    assert 0.623 < max(scales) <= 0.625
    assert np.mean([crop.flip for crop in crops]) == pytest.approx(0.5, abs=0.05)
    assert 0.39 < max(augmentation.turn for augmentation in drawn) <= 0.3925
    assert -0.3925 <= min(augmentation.turn for augmentation in drawn) < -0.39
    assert 0.95 <= min(augmentation.scale for augmentation in drawn) < 0.951
    assert 1.049 < max(augmentation.scale for augmentation in drawn) <= 1.05
    for crop in crops:
        assert crop.top == int(900 * crop.scale) - 320
        assert 0 <= crop.left <= max(0, int(1600 * crop.scale) - 800)
    assert max(crop.left for crop in crops) > 150


def test_a_test_takes_the_lower_part_of_the_whole_width():
    assert unchanged(torch.Generator()).crop(FULL, OUTPUT) == Crop(0.5, 0, 130, OUTPUT)
    assert (unchanged(torch.Generator()).world() == np.eye(4)).all()


def test_small_pictures_are_augmented_as_large_ones_are():
    for augmentation in draws(20):
        large, small = augmentation.crop(FULL, OUTPUT), augmentation.crop((180, 320), (64, 160))
        assert small.scale == pytest.approx(large.scale)
        assert small.top == pytest.approx(large.top / 5, abs=1)
        assert small.left == pytest.approx(large.left / 5, abs=1.3)


def test_the_same_generator_draws_the_same():
    assert draws(5) == draws(5)
    assert len({*draws(5)}) == 5


def test_what_a_picture_lacks_at_the_right_is_black():
    white = np.full((*FULL, 3), 255, dtype=np.uint8)
    picture = Augmentation(zoom=0.94).crop(FULL, OUTPUT).of(white)
    assert picture.shape == (*OUTPUT, 3)
    assert (picture[:, :752] == 255).all()
    assert (picture[:, 752:] == 0).all()


def as_published(crop, picture):
    """Resized as a whole, then cropped."""
    width, height = (int(side * crop.scale) for side in picture.shape[1::-1])
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    box = (crop.left, crop.top, crop.left + crop.size[1], crop.top + crop.size[0])
    return np.asarray(resized.crop(box))[:, :: -1 if crop.flip else 1].astype(int)


@pytest.mark.parametrize("output", [(64, 160), (100, 160)])
def test_pictures_are_those_of_the_published_steps(output):
    """To a byte in a thousand that is one off. At 100 rows some draws leave black above, too."""
    picture = np.random.default_rng(0).integers(0, 256, (180, 320, 3), dtype=np.uint8)
    for augmentation in [Augmentation(), *draws(30)]:
        crop = augmentation.crop((180, 320), output)
        off = np.abs(crop.of(picture) - as_published(crop, picture))
        assert off.max() <= 1
        assert (off > 0).mean() < 5e-3


@pytest.mark.parametrize("flip", [False, True])
def test_a_point_of_a_picture_goes_where_the_matrix_says(flip):
    picture = np.zeros((*FULL, 3), dtype=np.uint8)
    picture[600:608, 400:408] = 255
    crop = Augmentation(zoom=1.2, left=0.4, flip=flip).crop(FULL, OUTPUT)
    rows, columns = np.nonzero(crop.of(picture)[:, :, 0] > 128)
    u, v, _, _ = crop.matrix() @ (404, 604, 1, 1)
    assert columns.mean() + 0.5 == pytest.approx(u, abs=0.5)
    assert rows.mean() + 0.5 == pytest.approx(v, abs=0.5)


def test_a_flip_mirrors_pixels_but_moves_no_box():
    boxes = np.random.default_rng(0).normal(size=(4, 9))
    assert (Augmentation(flip=True).boxes(boxes) == boxes).all()
    plain, flipped = (
        Augmentation(left=0.3, zoom=1.1, flip=flip).crop(FULL, OUTPUT) for flip in (False, True)
    )
    picture = np.random.default_rng(0).integers(0, 256, (*FULL, 3), dtype=np.uint8)
    assert (flipped.of(picture)[:, ::-1] == plain.of(picture)).all()


def test_depth_along_a_ray_keeps_its_length(samples):
    """The world is scaled, the depth that a matrix tells is not: so it was published."""
    augmentation, matrices = Augmentation(turn=0.2, scale=1.05), samples[0].frame().lidar_to_image
    boxes = samples[0].truth.boxes
    for before, after in zip(matrices, augmentation.views(matrices)):
        depths = [
            m[2, :3] @ b[:, :3].T + m[2, 3]
            for m, b in ((before, boxes), (after, augmentation.boxes(boxes)))
        ]
        assert np.allclose(*depths)
