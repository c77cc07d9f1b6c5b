"""3D detection: from the images of six cameras to scored boxes around the vehicle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from groupdetr.data.check import CheckReport
from groupdetr.data.nuscenes.dataset import SceneDataset
from groupdetr.data.nuscenes.samples import Sample
from groupdetr.data.nuscenes.transforms import (
    IMAGE_SIZE,
    Augment,
    no_augmentation,
    petr_augmentation,
)
from groupdetr.data.nuscenes.version import (
    NuScenes,
    check_version,
    load,
    refuse_image_folder,
)
from groupdetr.data.nuscenes.worst_case import WorstCaseSceneBatch, worst_case
from groupdetr.data.transforms import ANY_SHAPE, InputShape
from groupdetr.engine.task import Task
from groupdetr.errors import UsageError
from groupdetr.evaluation.boxes3d import Boxes3D, Pose, predicted_boxes
from groupdetr.evaluation.nuscenes import NuScenesEvaluation, SampleGroundTruth, evaluate
from groupdetr.ops.boxes3d import decode_boxes3d
from groupdetr.settings import Settings
from groupdetr.structures.detections3d import Detections3D
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.postprocessing import best_pairs

AUGMENTATIONS: dict[str, Augment] = {"petr": petr_augmentation, "none": no_augmentation}
# Bounds of x, y, z of a detection in metres. Boxes whose centre is outside are dropped.
LOW, HIGH = (-61.2, -61.2, -10.0), (61.2, 61.2, 10.0)
MAX_STRIDE = 32  # of a backbone's feature maps, in pixels


@torch.no_grad()
def postprocess_boxes3d(predictions: Predictions, num_detections: int) -> list[Detections3D]:
    """Return the ``num_detections`` best (query, class) pairs of each scene.

    As in PETR's code, scores are sigmoids, and there is no threshold and no non-maximum
    suppression. Boxes whose centre is outside of `LOW` and `HIGH` are dropped afterwards.
    """
    scores, query, labels = best_pairs(predictions.logits.float().sigmoid(), num_detections)
    encoded = predictions.boxes.float()
    encoded = encoded.gather(1, query.unsqueeze(-1).expand(-1, -1, encoded.shape[-1]))
    boxes = decode_boxes3d(encoded)
    inside = are_inside(boxes)
    # The whole batch is copied to the host at once.
    scores = scores.cpu()
    labels = labels.cpu()
    boxes = boxes.cpu()
    inside = inside.cpu()
    detections = []
    for index in range(len(scores)):
        scene = Detections3D(scores[index], labels[index], boxes[index])
        detections.append(scene[inside[index]])
    return detections


def are_inside(boxes: Tensor) -> Tensor:
    """Return whether the centres of boxes [...,9] are between `LOW` and `HIGH`, [...] bool."""
    low, high = boxes.new_tensor(LOW), boxes.new_tensor(HIGH)
    centres = boxes[..., :3]
    return ((centres >= low) & (centres <= high)).all(-1)


def expect_camera_shape(settings: Settings, shape: InputShape) -> None:
    """Raise `UsageError` if images of cameras are to be squares, or to have several sizes."""
    if shape != ANY_SHAPE:
        raise UsageError(
            "the images of a scene keep their aspect ratio, for which its cameras are calibrated",
            remedy="leave out --set square_images=true",
        )
    if settings.multi_scale != "off":
        raise UsageError(
            f"--multi-scale {settings.multi_scale} is for models whose images are squares",
            remedy="choose --multi-scale off",
        )


class Detection3DTask(Task[Detections3D]):
    """3D detection on the samples of a nuScenes version."""

    kind: ClassVar[str] = "box3d"
    input_kind: ClassVar[str] = "scenes"
    metrics: ClassVar[tuple[str, ...]] = ("NDS", "mAP")
    two_frames: ClassVar[bool] = False  # True if a sample also has the images of an earlier frame
    postprocess = staticmethod(postprocess_boxes3d)

    train: SceneDataset
    val: SceneDataset

    def __init__(
        self,
        data: NuScenes,
        settings: Settings,
        num_detections: int,
        workers: int = 0,
        shape: InputShape = ANY_SHAPE,
    ) -> None:
        """``num_detections`` is the number of boxes of a sample, at most.

        `DataError` if no sample of the train split has an object to train on.
        """
        expect_camera_shape(settings, shape)
        self.data = data
        self.settings = settings
        self.num_detections = num_detections
        self.train = SceneDataset(
            data.splits["train"],
            image_size(settings.imgsz),
            augmentation(settings.augment),
            self.two_frames,
            settings.seed,
        )
        self.val = self.val_dataset(data.splits["val"], settings.imgsz)

    @classmethod
    def val_dataset(cls, samples: Sequence[Sample], imgsz: int) -> SceneDataset:
        """Return a dataset of samples without augmentation. Images become ``imgsz`` high."""
        return SceneDataset(samples, image_size(imgsz), two_frames=cls.two_frames)

    @classmethod
    def read(cls, data: Path, images: Path | None, cache: bool = False) -> NuScenes:
        """Read a version from disk. Its tables are never cached.

        `DataError` for the first problem that would mislead training.
        """
        refuse_image_folder(images)
        return load(data)

    @classmethod
    def check(
        cls,
        data: Path,
        images: Path | None,
        num_queries: int,
        decode: bool,
        cache: bool = False,
    ) -> CheckReport:
        """Return a report of all problems of a version."""
        refuse_image_folder(images)
        return check_version(data, decode, cls.two_frames, num_queries)

    @property
    def cache_bytes(self) -> int:
        """Always 0: decoded images are not cached."""
        return 0

    def worst_case(self, query_count: Callable[[int], int]) -> WorstCaseSceneBatch:
        return worst_case(self.train, query_count)

    def postprocess_val(
        self, predictions: Predictions, indices: Sequence[int]
    ) -> list[Detections3D]:
        return postprocess_boxes3d(predictions, self.num_detections)

    def evaluate(self, detections: Sequence[Detections3D]) -> NuScenesEvaluation:
        ground_truth = [sample_ground_truth(sample) for sample in self.val.samples]
        boxes = [
            to_global_frame(sample_detections, sample)
            for sample_detections, sample in zip(detections, self.val.samples)
        ]
        return evaluate(ground_truth, boxes)

    def train_image_names(self, indices: Sequence[int]) -> list[str]:
        return [f"sample {self.train.samples[index].token}" for index in indices]


class TwoFrameTask(Detection3DTask):
    """3D detection from two frames: the images of the key frame and those of an earlier frame."""

    two_frames: ClassVar[bool] = True


def augmentation(name: str) -> Augment:
    """Return the augmentation called ``name``. `UsageError` if it is not one for scenes."""
    if name not in AUGMENTATIONS:
        raise UsageError(
            f"--augment {name} is for images", remedy=f"for scenes: {' or '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[name]


def image_size(imgsz: int) -> tuple[int, int]:
    """Return the height and width of images that become ``imgsz`` high.

    As in PETR, they are about two and a half times as wide. The width is a multiple of the greatest
    common divisor of ``imgsz`` and `MAX_STRIDE`. So a backbone whose tokens fit the height does not
    have to pad the width.
    """
    divisor = math.gcd(imgsz, MAX_STRIDE)
    width = imgsz * IMAGE_SIZE[1] / IMAGE_SIZE[0]
    return imgsz, round(width / divisor) * divisor


def trainable_as_detections(sample: Sample) -> Detections3D:
    """Return the trainable objects of a sample as detections with score 1."""
    boxes, labels = sample.trainable_objects()
    scores = torch.ones(len(labels))
    return Detections3D(scores, torch.from_numpy(labels), torch.from_numpy(boxes))


def sample_ground_truth(sample: Sample) -> SampleGroundTruth:
    """Return all annotated objects of a sample for the evaluation."""
    truth = sample.truth
    return SampleGroundTruth.from_lidar_frame(
        lidar_pose(sample),
        truth.boxes,
        truth.labels,
        truth.attributes,
        truth.points,
        truth.racks,
    )


def to_global_frame(detections: Detections3D, sample: Sample) -> Boxes3D:
    """Return the detections of a sample as boxes in the global frame."""
    return predicted_boxes(
        detections.boxes.numpy(),
        detections.labels.numpy(),
        detections.scores.numpy(),
        lidar_pose(sample),
    )


def lidar_pose(sample: Sample) -> Pose:
    """Return the pose of the lidar of a sample."""
    return Pose(sample.lidar_to_ego, sample.ego_to_global)
