"""The worst case of a training on nuScenes: samples with the largest number of queries.

The images of all samples have the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from groupdetr.data.nuscenes.dataset import MultiViewSample, SceneBatch, SceneDataset, collate
from groupdetr.data.worst_case import max_by_load
from groupdetr.structures.targets import Target


@dataclass(frozen=True, eq=False)
class WorstCaseSceneBatch:
    """The largest batches that a training can draw from a split."""

    sample: MultiViewSample  # any one: its images, and its cameras as they are mounted
    objects: int  # per sample

    def __str__(self) -> str:
        num_images, _, height, width = self.sample.pixels.shape
        return f"images of {num_images} x {width} x {height} pixels with {self.objects} objects"

    def pixels(self, num_samples: int) -> int:
        """Return the number of pixels of all images in a batch of ``num_samples`` samples."""
        num_images, _, height, width = self.sample.pixels.shape
        return num_samples * num_images * height * width

    def batch(self, num_samples: int) -> SceneBatch:
        """Return a batch that repeats one sample, with random boxes of the first class."""
        return collate([replace(self.sample, target=self.target()) for _ in range(num_samples)])

    def target(self) -> Target:
        """Return random boxes whose sizes are positive, because training takes their logarithm."""
        labels = torch.zeros(self.objects, dtype=torch.int64)
        return Target(labels, 0.5 + torch.rand(self.objects, 9))


def worst_case(dataset: SceneDataset, query_count: Callable[[int], int]) -> WorstCaseSceneBatch:
    """Return the largest batches of a training on ``dataset``.

    ``query_count(n)`` is the number of queries per group for n objects.
    """
    counts = {int(sample.truth.trainable.sum()) for sample in dataset.samples}
    return WorstCaseSceneBatch(dataset[0], max_by_load(counts, query_count))
