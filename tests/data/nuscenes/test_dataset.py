"""Claims about what training and evaluation get: shapes, ages, which earlier frame, and that it repeats."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from groupdetr.data.batch import Draw
from groupdetr.data.nuscenes.dataset import Views, drawn_earlier
from groupdetr.data.nuscenes.transforms import published, unchanged
from groupdetr.errors import DataError
from groupdetr.structures.targets import Target

SIZE = (64, 160)


def without_objects(sample):
    return replace(sample, truth=replace(sample.truth, points=np.zeros_like(sample.truth.points)))


@pytest.mark.parametrize(("two_frames", "views"), [(False, 6), (True, 12)])
@pytest.mark.parametrize("augment", [None, unchanged, published])
def test_a_sample_is_bytes_matrices_ages_and_boxes(samples, two_frames, views, augment):
    item = Views(samples, SIZE, augment, two_frames)[1]
    assert item.pixels.shape == (views, 3, *SIZE)
    assert item.pixels.dtype == torch.uint8
    assert item.lidar_to_image.shape == (views, 4, 4)
    assert item.ages.shape == (views,)
    assert item.lidar_to_image.dtype == item.ages.dtype == torch.float64
    assert item.target.boxes.shape == (16, 9)
    assert item.target.boxes.dtype == torch.float32
    assert item.target.labels.dtype == torch.int64
    assert item.index == 1


def test_a_test_leaves_boxes_as_they_are(samples):
    boxes, labels = samples[2].objects()
    target = Views(samples, SIZE)[2].target
    assert (target.boxes.numpy() == boxes.astype(np.float32)).all()
    assert (target.labels.numpy() == labels).all()


def same(a, b):
    fields = ("pixels", "lidar_to_image", "ages")
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)
        and a.index == b.index
    )


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(samples):
    views = Views(samples, SIZE, augment=published, two_frames=True, seed=3)
    first = views[Draw(4, 2)]
    views[Draw(4, 1)]
    assert same(first, views[Draw(4, 2)])
    assert same(first, pickle.loads(pickle.dumps(views))[Draw(4, 2)])
    assert not same(first, views[Draw(5, 2)])
    assert not same(
        first, Views(samples, SIZE, augment=published, two_frames=True, seed=4)[Draw(4, 2)]
    )


def test_evaluation_draws_nothing(samples):
    assert same(
        Views(samples, SIZE, two_frames=True, seed=0)[2],
        Views(samples, SIZE, two_frames=True, seed=1)[2],
    )


def test_one_draw_holds_for_all_views(samples):
    """The current views of both frames are the same pictures where there is none before."""
    item = Views(samples, SIZE, augment=published, two_frames=True)[0]
    assert not len(samples[0].earlier)
    assert torch.equal(item.pixels[:6], item.pixels[6:])
    assert torch.equal(item.lidar_to_image[:6], item.lidar_to_image[6:])
    assert torch.allclose(item.ages[6:] - item.ages[:6], torch.tensor(1.245, dtype=torch.float64))


def test_a_test_looks_back_a_second_and_a_quarter(long_samples):
    assert Views(long_samples, (16, 32))[7].elapsed == 0
    item = Views(long_samples, (16, 32), two_frames=True)[7]
    assert item.elapsed == pytest.approx(1.25, abs=1e-5)
    assert torch.allclose(
        item.ages[6:] - item.ages[:6], torch.tensor(1.25, dtype=torch.float64), atol=1e-5
    )
    few = Views(long_samples, (16, 32), two_frames=True)[1]
    assert torch.allclose(
        few.ages[6:] - few.ages[:6], torch.tensor(0.5, dtype=torch.float64), atol=1e-5
    )


@pytest.mark.parametrize(
    ("number", "drawn"),
    [
        (1, {0}),
        (2, {1}),
        (3, {2}),
        (4, {3}),
        (6, {3, 4, 5}),
        (27, {*range(3, 27)}),
        (30, {*range(3, 27)}),
    ],
)
def test_training_draws_the_earlier_frame_as_published(number, drawn):
    generator = torch.Generator().manual_seed(0)
    assert {drawn_earlier(number, generator) for _ in range(600)} == drawn


def test_in_training_another_sample_replaces_one_without_objects(samples):
    poor = [without_objects(sample) for sample in samples[:-2]] + [*samples[-2:]]
    views = Views(poor, SIZE, augment=published)
    assert {views[Draw(epoch, 0)].index for epoch in range(12)} == {len(poor) - 2, len(poor) - 1}
    assert views[len(poor) - 1].index == len(poor) - 1
    empty = Views(poor, SIZE)[0]
    assert empty.index == 0
    assert empty.target.boxes.shape == (0, 9)


def test_training_on_nothing_is_refused(samples):
    with pytest.raises(DataError, match="no sample has an object to learn"):
        Views([without_objects(sample) for sample in samples], SIZE, augment=published)


def test_a_picture_that_is_not_there_is_told(samples):
    sample = samples[0]
    lost = replace(
        sample, footage=replace(sample.footage, names=("gone.jpg",) * len(sample.footage.names))
    )
    with pytest.raises(DataError, match=r"(?s)there is no such picture.*gone.jpg"):
        Views([lost], SIZE)[0]


def test_targets_have_boxes_of_four_or_nine_numbers():
    labels = torch.zeros(2, dtype=torch.int64)
    assert len(Target(labels, torch.zeros(2, 4))) == len(Target(labels, torch.zeros(2, 9))) == 2
    with pytest.raises(ValueError, match=r"boxes must be \[T,4\] or \[T,9\], not \(2, 7\)"):
        Target(labels, torch.zeros(2, 7))
