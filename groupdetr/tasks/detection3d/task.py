"""Detection in space: what six cameras saw in, scored boxes around the vehicle out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from groupdetr.data.check import Report
from groupdetr.data.nuscenes.dataset import Views
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.transforms import IMGSZ, Augment, published, unchanged
from groupdetr.data.nuscenes.version import NuScenes, check_version, load
from groupdetr.data.nuscenes.worst_case import Worst, worst_of
from groupdetr.errors import UsageError
from groupdetr.evaluation.boxes3d import Boxes3D, Pose, found_boxes
from groupdetr.evaluation.nuscenes import Evaluation, Scene, evaluate
from groupdetr.ops.boxes3d import code_to_box
from groupdetr.settings import Settings
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.task import best_pairs

AUGMENTATIONS: dict[str, Augment] = {"petr": published, "none": unchanged}
LOW, HIGH = (-61.2, -61.2, -10.0), (61.2, 61.2, 10.0)  # metres: centres beyond are dropped
COARSEST = 32  # pixels of a picture that are one of a backbone's coarsest map


@dataclass
class Found:
    """Of one sample, by falling score, in the lidar frame."""

    scores: Tensor  # [D] in [0,1]
    labels: Tensor  # [D] int64
    boxes: Tensor  # [D,9] as in ops/boxes3d

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, kept: Tensor | slice) -> Found:
        return Found(self.scores[kept], self.labels[kept], self.boxes[kept])

    def above(self, score: float) -> Found:
        """Those with at least this score."""
        return self[self.scores >= score]


@torch.no_grad()
def boxes_in_space(answer: Predictions, most: int) -> list[Found]:
    """The ``most`` best (query, class) pairs of each scene. As in PETR: no threshold, no non-maximum suppression."""
    scores, query, label = best_pairs(answer.logits.float().sigmoid(), most)
    codes = answer.boxes.float().gather(
        1, query.unsqueeze(-1).expand(-1, -1, answer.boxes.shape[-1])
    )
    boxes = code_to_box(codes)
    low, high = boxes.new_tensor(LOW), boxes.new_tensor(HIGH)
    within = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)
    parts = (scores.cpu(), label.cpu(), boxes.cpu(), within.cpu())
    return [Found(score[kept], kind[kept], box[kept]) for score, kind, box, kept in zip(*parts)]


class Detection3DTask:
    """Detection on the samples of a nuScenes version. ``most``: boxes kept of a sample."""

    kind: ClassVar[str] = "space"
    sees: ClassVar[str] = "scenes"
    figures: ClassVar[tuple[str, ...]] = (
        "NDS",
        "mAP",
    )  # that are shown while training, the deciding one first
    two_frames: ClassVar[bool] = False  # is an earlier frame looked at, too?
    kept: ClassVar[int] = 0  # bytes: pictures are decoded anew whenever they are drawn
    found = staticmethod(boxes_in_space)

    def __init__(self, data: NuScenes, settings: Settings, most: int, workers: int = 0) -> None:
        del workers
        self.data, self.settings, self.most = data, settings, most
        self.augment = augmentation(settings.augment)
        self.val = self.seen(data.splits["val"], settings.imgsz)

    @cached_property
    def train(self) -> Views:
        size, seed = size_of(self.settings.imgsz), self.settings.seed
        return Views(self.data.splits["train"], size, self.augment, self.two_frames, seed)

    @classmethod
    def seen(cls, samples: Sequence[Sample], imgsz: int) -> Views:
        """Samples as they are when nothing is learned."""
        return Views(samples, size_of(imgsz), two_frames=cls.two_frames)

    @classmethod
    def read(cls, data: Path, images: Path | None) -> NuScenes:
        """A version from disk; `DataError` for the first thing that would mislead training."""
        del images
        return load(data)

    @classmethod
    def check(cls, data: Path, images: Path | None, num_queries: int, decode: bool) -> Report:
        """Everything that is wrong with it."""
        del images, num_queries
        return check_version(data, decode, cls.two_frames)

    def worst(self, burden: Callable[[int], int]) -> Worst:
        return worst_of(self.train, burden)

    def postprocess(self, answer: Predictions, indices: Sequence[int]) -> list[Found]:
        del indices
        return boxes_in_space(answer, self.most)

    def evaluate(self, found: Sequence[Found]) -> Evaluation:
        scenes = [scene_of(sample) for sample in self.val.samples]
        return evaluate(
            scenes, [in_the_world(each, sample) for each, sample in zip(found, self.val.samples)]
        )

    def names(self, indices: Sequence[int]) -> list[str]:
        return [f"sample {self.train.samples[index].token}" for index in indices]


def augmentation(name: str) -> Augment:
    if name not in AUGMENTATIONS:
        raise UsageError(
            f"--augment {name} is for pictures", remedy=f"for scenes: {' or '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name]


def size_of(imgsz: int) -> tuple[int, int]:
    """Pictures become as high as ``imgsz``, and about two and a half times as wide, as published: a multiple of what
    divides ``imgsz`` and `COARSEST`, so that no backbone whose tokens fit the height has to pad the width."""
    whole = math.gcd(imgsz, COARSEST)
    return imgsz, round(imgsz * IMGSZ[1] / IMGSZ[0] / whole) * whole


def learned(sample: Sample) -> Found:
    """What is there to be learned, as if it had been found."""
    boxes, labels = sample.objects()
    return Found(torch.ones(len(labels)), torch.from_numpy(labels), torch.from_numpy(boxes))


def scene_of(sample: Sample) -> Scene:
    """What is there."""
    truth = sample.truth
    return Scene.seen_from(
        pose_of(sample), truth.boxes, truth.labels, truth.attributes, truth.points, truth.racks
    )


def in_the_world(found: Found, sample: Sample) -> Boxes3D:
    return found_boxes(
        found.boxes.numpy(), found.labels.numpy(), found.scores.numpy(), pose_of(sample)
    )


def pose_of(sample: Sample) -> Pose:
    return Pose(sample.lidar_to_ego, sample.ego_to_global)


class TwoFrameTask(Detection3DTask):
    """The same from what was seen now and a moment before."""

    two_frames: ClassVar[bool] = True
