"""The figures of a version's splits, and a report that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from groupdetr.data.check import Report
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.samples import Sample

TRAINED = ("train", "mini_train")  # the first that is there is trained on


@dataclass(frozen=True)
class SampleCounts:
    """The figures of one split. Objects are those that training would use: in range, and with a point."""

    samples: int
    empty_samples: int  # without such an object
    objects: int
    classes: dict[str, int]  # name: objects, of all ten

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {number}" for name, number in self.classes.items() if number)
        told = (
            f"{self.samples} samples ({self.empty_samples} without objects), {self.objects} objects"
        )
        return f"{told}: {classes}" if classes else told


def count(samples: Sequence[Sample]) -> SampleCounts:
    """Of a split."""
    labels = [sample.truth.labels[sample.truth.learned] for sample in samples]
    per_class = np.bincount(
        np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(CLASSES)
    ).tolist()
    empty = sum(not len(some) for some in labels)
    return SampleCounts(len(samples), empty, sum(per_class), dict(zip(CLASSES, per_class)))


@dataclass(frozen=True, eq=False)
class SceneReport(Report):
    """What a check of scenes found."""

    counts: dict[str, SampleCounts] = field(
        default_factory=dict
    )  # by split, as the version calls it

    @property
    def images(self) -> int:
        """Samples that are trained on."""
        return self._trained().samples

    @property
    def boxes(self) -> int:
        """Objects that are learned."""
        return self._trained().objects

    def _trained(self) -> SampleCounts:
        return next((self.counts[name] for name in TRAINED if name in self.counts), count([]))

    def to_json(self) -> dict[str, Any]:
        """As of pictures, but a split has samples and objects."""
        return super().to_json() | {
            "splits": {name: asdict(counts) for name, counts in self.counts.items()}
        }

    def render(self) -> str:
        """The findings, and a line for each split."""
        return "\n".join(
            [super().render(), *(f"{name}: {counts}" for name, counts in self.counts.items())]
        )
