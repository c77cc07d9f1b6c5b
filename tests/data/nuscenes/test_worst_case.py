"""No batch of a training on nuScenes is larger than its worst case."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from groupdetr.data.nuscenes.dataset import SceneDataset, collate
from groupdetr.data.nuscenes.transforms import petr_augmentation
from groupdetr.data.nuscenes.worst_case import worst_case
from tests.data.nuscenes.test_dataset import SIZE


def with_objects(sample, count):
    """Return a sample in which only the first ``count`` trainable objects keep their points."""
    rank = np.cumsum(sample.truth.trainable)
    points = sample.truth.points * (rank <= count)
    return replace(sample, truth=replace(sample.truth, points=points))


@pytest.mark.parametrize(("two_frames", "num_images"), [(False, 6), (True, 12)])
def test_the_worst_case_is_as_large_as_any_batch_and_has_the_same_form(
    samples, two_frames, num_images
):
    dataset = SceneDataset(samples, SIZE, augment=petr_augmentation, two_frames=two_frames)
    worst = worst_case(dataset, int)
    for size in (1, 3):
        worst_batch = worst.batch(size)
        batch = collate([dataset[index] for index in range(size)])
        assert worst_batch.pixels.shape == batch.pixels.shape
        assert max(map(len, batch.targets)) <= len(worst_batch.targets[0])
        assert [target.boxes.dtype for target in worst_batch.targets] == [torch.float32] * size
        boxes = torch.cat([target.boxes for target in worst_batch.targets])
        assert (boxes[:, 3:6] > 0).all(), "training takes the logarithms of sizes"
        assert torch.isfinite(worst_batch.images(torch.device("cpu")).image_to_lidar).all()
        assert worst.pixels(size) == size * num_images * 64 * 160 == batch.pixels.numel() // 3
    assert f"{num_images} x 160 x 64 pixels" in str(worst)


def test_the_number_of_objects_is_the_one_with_most_queries(samples):
    counts = (4, 0, 7)
    dataset = SceneDataset(
        [with_objects(samples[0], count) for count in counts], SIZE, augment=petr_augmentation
    )
    assert worst_case(dataset, int).objects == 7
    assert worst_case(dataset, lambda n: n % 5).objects == 4
