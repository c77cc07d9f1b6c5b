"""The worst case of samples: the most objects that one of them teaches. In pictures all are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from groupdetr.data.nuscenes.dataset import MultiView, Scenes, Views, collate
from groupdetr.data.worst_case import heaviest
from groupdetr.structures.targets import Target


@dataclass(frozen=True, eq=False)
class Worst:
    """What samples of a split become in training: as many views of one size each, and their objects."""

    scene: MultiView  # one of them: its pictures, and cameras that stand as cameras do
    objects: int  # of a sample

    def __str__(self) -> str:
        views, _, height, width = self.scene.pixels.shape
        return f"images of {views} x {width} x {height} pixels with {self.objects} objects"

    def pixels(self, images: int) -> int:
        """Of a batch, in all views."""
        views, _, height, width = self.scene.pixels.shape
        return images * views * height * width

    def batch(self, images: int) -> Scenes:
        """The one scene again and again, with random boxes of the first class."""
        return collate([replace(self.scene, target=self.target()) for _ in range(images)])

    def target(self) -> Target:
        return Target(
            torch.zeros(self.objects, dtype=torch.int64), 0.5 + torch.rand(self.objects, 9)
        )


def worst_of(views: Views, burden: Callable[[int], int]) -> Worst:
    """Of a split, as it is trained on. ``burden`` of a number of objects: how much they weigh."""
    counts = {int(sample.truth.learned.sum()) for sample in views.samples}
    return Worst(views[0], heaviest(counts, burden))
