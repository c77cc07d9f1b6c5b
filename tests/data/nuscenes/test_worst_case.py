"""No batch of a training on samples is larger than the worst case that is read off them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from groupdetr.data.nuscenes.dataset import Views, collate
from groupdetr.data.nuscenes.transforms import published
from groupdetr.data.nuscenes.worst_case import worst_of
from tests.data.nuscenes.test_dataset import SIZE


def with_objects(sample, count):
    """No more than so many have a point, and nothing else is learned."""
    rank = np.cumsum(sample.truth.learned)
    return replace(
        sample, truth=replace(sample.truth, points=sample.truth.points * (rank <= count))
    )


@pytest.mark.parametrize(("two_frames", "views"), [(False, 6), (True, 12)])
def test_no_batch_passes_it_and_it_looks_like_one(samples, two_frames, views):
    source = Views(samples, SIZE, augment=published, two_frames=two_frames)
    worst = worst_of(source, int)
    for size in (1, 3):
        expected, batch = worst.batch(size), collate([source[index] for index in range(size)])
        assert expected.pixels.shape == batch.pixels.shape
        assert max(map(len, batch.targets)) <= len(expected.targets[0])
        assert [target.boxes.dtype for target in expected.targets] == [torch.float32] * size
        assert (torch.cat([target.boxes for target in expected.targets])[:, 3:6] > 0).all(), (
            "sizes have logarithms"
        )
        assert torch.isfinite(expected.images(torch.device("cpu")).image_to_lidar).all()
        assert worst.pixels(size) == size * views * 64 * 160 == batch.pixels.numel() // 3
    assert f"{views} x 160 x 64 pixels" in str(worst)


def test_the_most_objects_are_those_that_weigh_most_of_what_is_learned(samples):
    source = Views(
        [with_objects(samples[0], count) for count in (4, 0, 7)], SIZE, augment=published
    )
    assert worst_of(source, int).objects == 7
    assert worst_of(source, lambda n: n % 5).objects == 4
