"""Object detection in images: COCO datasets, post-processing of boxes, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from groupdetr.data import transforms
from groupdetr.data.check import CheckReport, check
from groupdetr.data.dataset import DetectionDataset
from groupdetr.data.layouts import DatasetSplits, load, load_split
from groupdetr.data.mosaic import Mosaic
from groupdetr.data.own_transform import OwnTransform
from groupdetr.data.records import CocoSplit, Record
from groupdetr.data.worst_case import WorstCaseImageBatch, worst_case
from groupdetr.engine.task import Task
from groupdetr.errors import UsageError
from groupdetr.evaluation.coco import METRICS, CocoEvaluation, evaluate
from groupdetr.evaluation.error_analysis import analyse_errors
from groupdetr.ops.boxes import cxcywh_to_xyxy
from groupdetr.settings import MOSAIC, PHOTOMETRIC, Settings
from groupdetr.structures.detections import Detections
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.postprocessing import best_pairs

AUGMENTATIONS: dict[str, Callable[[int], transforms.Transform]] = {
    "detr": transforms.detr_transform,
    "lsj": transforms.lsj_transform,
    "flip": transforms.flip_transform,
    "none": transforms.val_transform,
}
# Bytes of decoded training images that all loader workers together keep at most.
MAX_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Augmentation:
    """What ``--augment`` names: a geometric transform, and what is added to it."""

    geometric: str  # a key of `AUGMENTATIONS`
    mosaic: bool = False
    photometric: bool = False

    @classmethod
    def named(cls, name: str) -> Augmentation:
        """Return the augmentation called ``name``, such as flip or detr+mosaic+photometric."""
        geometric, *added = name.split("+")
        if geometric not in AUGMENTATIONS:
            raise UsageError(
                f"--augment {name} is for scenes", remedy=f"for images: {', '.join(AUGMENTATIONS)}"
            )
        return cls(geometric, MOSAIC in added, PHOTOMETRIC in added)

    def dataset(
        self,
        records: Sequence[Record],
        imgsz: int,
        seed: int = 0,
        cache_bytes: int = 0,
        own_transform: OwnTransform | None = None,
    ) -> DetectionDataset:
        """Return the images of ``records``, augmented for a training at ``imgsz``."""
        transform = AUGMENTATIONS[self.geometric](imgsz)
        if self.photometric:
            transform = transforms.PhotometricDistortion(transform)
        mosaic = Mosaic(imgsz) if self.mosaic else None
        return DetectionDataset(records, transform, seed, cache_bytes, mosaic, own_transform)


@torch.no_grad()
def postprocess_boxes(
    predictions: Predictions, sizes: Sequence[tuple[int, int]], num_detections: int
) -> list[Detections]:
    """Return the ``num_detections`` best (query, class) pairs of each image.

    They are sorted by decreasing score. Predictions have the axes [B,N,.], and ``sizes`` are
    (width, height) of the B original images. Boxes are in pixels of these and may reach outside of
    the image. As in Deformable DETR: scores by sigmoid, no threshold, no non-maximum suppression; a
    query may appear with several classes.
    """
    scores, query, label = best_pairs(predictions.logits.float().sigmoid(), num_detections)
    boxes = cxcywh_to_xyxy(predictions.boxes.float())
    boxes = boxes.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    scale = torch.tensor([[w, h, w, h] for w, h in sizes], device=boxes.device)
    boxes = boxes * scale.unsqueeze(1)
    images = zip(scores.cpu(), label.cpu(), boxes.cpu())
    return [Detections(*detections) for detections in images]


class DetectionTask(Task[Detections]):
    """Object detection on a dataset with the splits ``train`` and ``val``.

    An image has at most ``num_detections`` detections. ``workers`` processes load the training
    images.
    """

    kind: ClassVar[str] = "box"
    input_kind: ClassVar[str] = "images"
    metrics: ClassVar[tuple[str, ...]] = METRICS[:6]
    reads_masks: ClassVar[bool] = False  # True: datasets are read with the masks of objects

    train: DetectionDataset
    val: DetectionDataset

    def __init__(
        self, data: DatasetSplits, settings: Settings, num_detections: int, workers: int = 0
    ) -> None:
        self.data = data
        self.settings = settings
        self.num_detections = num_detections
        # Without workers, the training process loads the images.
        self.num_loaders = max(1, workers)
        self.augmentation = Augmentation.named(settings.augment)
        self.train = self.augmentation.dataset(
            data.splits["train"].records,
            settings.imgsz,
            settings.seed,
            MAX_CACHE_BYTES // self.num_loaders,
        )
        self.val = DetectionDataset(
            data.splits["val"].records, transforms.val_transform(settings.imgsz)
        )

    @classmethod
    def read(cls, data: Path, images: Path | None) -> DatasetSplits:
        """Read a dataset from disk.

        `DataError` for the first problem that would mislead training.
        """
        return load(data, images, masks=cls.reads_masks)

    @classmethod
    def read_split(cls, data: Path, images: Path | None, split: str | None) -> CocoSplit:
        """Read one split from disk, with all of its images. ``split`` as in `load_split`.

        `UsageError` if there is no such split. `DataError` for the first problem that would mislead
        the evaluation.
        """
        return load_split(data, images, split, masks=cls.reads_masks)

    @classmethod
    def check(cls, data: Path, images: Path | None, num_queries: int, decode: bool) -> CheckReport:
        """Return all problems of a dataset. With ``decode``, all images are decoded."""
        return check(data, images, num_queries, decode, masks=cls.reads_masks)

    @staticmethod
    def postprocess(
        predictions: Predictions, sizes: Sequence[tuple[int, int]], num_detections: int
    ) -> list[Detections]:
        """Return the detections of images of any dataset, from predictions [B,N,.]."""
        return postprocess_boxes(predictions, sizes, num_detections)

    @property
    def cache_bytes(self) -> int:
        # Every loader worker loads every image sooner or later, so each fills its own cache.
        return self.num_loaders * self.train.max_cache_bytes

    def worst_case(self, query_count: Callable[[int], int]) -> WorstCaseImageBatch:
        return worst_case(
            self.train.records,
            self.settings.imgsz,
            self.augmentation.geometric,
            query_count,
            mosaic=self.augmentation.mosaic,
            any_shape=self.train.own_transform is not None,
        )

    def postprocess_val(self, predictions: Predictions, indices: Sequence[int]) -> list[Detections]:
        records = [self.val.records[index] for index in indices]
        sizes = [(record.width, record.height) for record in records]
        return self.postprocess(predictions, sizes, self.num_detections)

    def evaluate(self, detections: Sequence[Detections]) -> CocoEvaluation:
        val = self.data.splits["val"]
        return replace(evaluate(val, detections), errors=analyse_errors(val, detections))

    def ground_truth(self, index: int) -> Detections:
        """Return the objects of validation image ``index`` as detections with a score of 1."""
        corners, labels = self.val.records[index].trainable_objects()
        return Detections(
            scores=torch.ones(len(labels)),
            labels=torch.from_numpy(labels),
            boxes=torch.from_numpy(corners).float(),
        )

    def train_image_names(self, indices: Sequence[int]) -> list[str]:
        return [self.train.records[index].file_name for index in indices]
