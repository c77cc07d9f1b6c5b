"""Object counts of the splits of a nuScenes version, and the report that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from groupdetr.data.check import CheckReport
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.structures.json_object import JsonObject

TRAIN_SPLITS = ("train", "mini_train")  # the first of them that exists is used for training


@dataclass(frozen=True)
class SampleCounts:
    """Counts of one split. Objects are those to train on: in range, and with a point."""

    samples: int
    empty_samples: int  # samples without such an object
    objects: int
    classes: dict[str, int]  # number of objects by class name, of all ten classes

    def __str__(self) -> str:
        text = (
            f"{self.samples} samples ({self.empty_samples} without objects), {self.objects} objects"
        )
        classes = ", ".join(f"{name} {number}" for name, number in self.classes.items() if number)
        return f"{text}: {classes}" if classes else text


def count_objects(samples: Sequence[Sample]) -> SampleCounts:
    """Count the objects of a split."""
    labels = [sample.truth.labels[sample.truth.trainable] for sample in samples]
    all_labels = np.concatenate([np.zeros(0, np.int64), *labels])
    per_class = np.bincount(all_labels, minlength=len(CLASSES)).tolist()
    empty_samples = sum(len(sample_labels) == 0 for sample_labels in labels)
    classes = dict(zip(CLASSES, per_class))
    return SampleCounts(len(samples), empty_samples, sum(per_class), classes)


@dataclass(frozen=True, eq=False, repr=False)
class SceneCheckReport(CheckReport):
    """The result of a check of a nuScenes version."""

    counts: dict[str, SampleCounts] = field(default_factory=dict)  # by the version's split names

    @property
    def images(self) -> int:
        """Number of samples of the training split."""
        return self._train_counts().samples

    @property
    def boxes(self) -> int:
        """Number of trainable objects of the training split."""
        return self._train_counts().objects

    def _train_counts(self) -> SampleCounts:
        for name in TRAIN_SPLITS:
            if name in self.counts:
                return self.counts[name]
        return count_objects([])

    def to_json(self) -> JsonObject:
        """Return the same keys as for images, but a split has counts of samples and objects."""
        splits = {name: asdict(counts) for name, counts in self.counts.items()}
        return super().to_json() | {"splits": splits}

    def render(self) -> str:
        """Return the findings, and a line for each split, as text."""
        return "\n".join([super().render(), *self.split_summaries()])

    def split_summaries(self) -> list[str]:
        """Return one line for each split: its samples and objects."""
        return [f"{name}: {counts}" for name, counts in self.counts.items()]
