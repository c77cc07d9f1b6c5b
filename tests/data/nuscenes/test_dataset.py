"""The dataset's samples: their shapes, ages, earlier frames, and reproducible random choices."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from groupdetr.data.dataset import SampleIndex
from groupdetr.data.nuscenes.dataset import SceneDataset, draw_earlier_frame
from groupdetr.data.nuscenes.transforms import no_augmentation, petr_augmentation
from groupdetr.errors import DataError

SIZE = (64, 160)


def without_objects(sample):
    """Return a sample whose objects have no points, so that none of them is trainable."""
    return replace(sample, truth=replace(sample.truth, points=np.zeros_like(sample.truth.points)))


@pytest.mark.parametrize(
    ("augment", "two_frames", "num_images"),
    [(None, False, 6), (no_augmentation, True, 12), (petr_augmentation, True, 12)],
)
def test_a_sample_has_bytes_matrices_ages_and_boxes(samples, two_frames, num_images, augment):
    item = SceneDataset(samples, SIZE, augment, two_frames)[1]
    assert item.pixels.shape == (num_images, 3, *SIZE)
    assert item.pixels.dtype == torch.uint8
    assert item.lidar_to_image.shape == (num_images, 4, 4)
    assert item.ages.shape == (num_images,)
    assert item.lidar_to_image.dtype == item.ages.dtype == torch.float64
    assert item.target.boxes.shape == (16, 9)
    assert item.target.boxes.dtype == torch.float32
    assert item.target.labels.dtype == torch.int64
    assert item.index == 1


def test_validation_does_not_change_boxes_and_makes_no_random_choices(samples):
    first, second = (SceneDataset(samples, SIZE, two_frames=True, seed=seed)[2] for seed in (0, 1))
    assert are_equal(first, second)
    boxes, labels = samples[2].trainable_objects()
    assert (first.target.boxes.numpy() == boxes.astype(np.float32)).all()
    assert (first.target.labels.numpy() == labels).all()


def are_equal(a, b):
    for name in ("pixels", "lidar_to_image", "ages"):
        if not torch.equal(getattr(a, name), getattr(b, name)):
            return False
    return a.index == b.index


def test_random_choices_depend_on_seed_epoch_and_index_only(samples):
    dataset = SceneDataset(samples, SIZE, augment=petr_augmentation, two_frames=True, seed=3)
    first = dataset[SampleIndex(4, 2)]
    dataset[SampleIndex(4, 1)]
    assert are_equal(first, dataset[SampleIndex(4, 2)])
    assert are_equal(first, pickle.loads(pickle.dumps(dataset))[SampleIndex(4, 2)])
    assert not are_equal(first, dataset[SampleIndex(5, 2)])
    other_seed = SceneDataset(samples, SIZE, augment=petr_augmentation, two_frames=True, seed=4)
    assert not are_equal(first, other_seed[SampleIndex(4, 2)])


def test_all_images_of_a_sample_have_the_same_augmentation(samples):
    """Without an earlier frame, the images of the key frame are used twice."""
    item = SceneDataset(samples, SIZE, augment=petr_augmentation, two_frames=True)[0]
    assert not len(samples[0].earlier_indices)
    assert torch.equal(item.pixels[:6], item.pixels[6:])
    assert torch.equal(item.lidar_to_image[:6], item.lidar_to_image[6:])
    expected = torch.tensor(1.245, dtype=torch.float64)
    assert torch.allclose(item.ages[6:] - item.ages[:6], expected)


def test_the_earlier_frame_of_validation_is_a_second_and_a_quarter_older(long_samples):
    assert SceneDataset(long_samples, (16, 32))[7].elapsed == 0
    item = SceneDataset(long_samples, (16, 32), two_frames=True)[7]
    assert item.elapsed == pytest.approx(1.25, abs=1e-5)
    expected = torch.tensor(1.25, dtype=torch.float64)
    assert torch.allclose(item.ages[6:] - item.ages[:6], expected, atol=1e-5)
    # The second sample of a scene has six earlier frames. The earliest is half a second older.
    second = SceneDataset(long_samples, (16, 32), two_frames=True)[1]
    expected = torch.tensor(0.5, dtype=torch.float64)
    assert torch.allclose(second.ages[6:] - second.ages[:6], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("num_earlier", "possible"),
    [
        (1, {0}),
        (4, {3}),
        (6, {3, 4, 5}),
        (30, {*range(3, 27)}),
    ],
)
def test_training_draws_the_earlier_frame_as_published(num_earlier, possible):
    generator = torch.Generator().manual_seed(0)
    draws = {draw_earlier_frame(num_earlier, generator) for _ in range(600)}
    assert draws == possible


def test_training_replaces_a_sample_without_objects_by_another_one(samples):
    only_last_two = [without_objects(sample) for sample in samples[:-2]] + [*samples[-2:]]
    last = len(only_last_two) - 1
    dataset = SceneDataset(only_last_two, SIZE, augment=petr_augmentation)
    assert {dataset[SampleIndex(epoch, 0)].index for epoch in range(12)} == {last - 1, last}
    assert dataset[last].index == last
    empty = SceneDataset(only_last_two, SIZE)[0]
    assert empty.index == 0
    assert empty.target.boxes.shape == (0, 9)


def test_training_without_any_object_is_refused(samples):
    empty = [without_objects(sample) for sample in samples]
    with pytest.raises(DataError, match="no sample has an object to train on"):
        SceneDataset(empty, SIZE, augment=petr_augmentation)


def test_a_missing_image_is_named(samples):
    camera_frames = samples[0].camera_frames
    missing = replace(camera_frames, names=("gone.jpg",) * len(camera_frames.names))
    sample = replace(samples[0], camera_frames=missing)
    with pytest.raises(DataError, match=r"(?s)there is no such image.*gone.jpg"):
        SceneDataset([sample], SIZE)[0]
