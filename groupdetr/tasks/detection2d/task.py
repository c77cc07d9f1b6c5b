"""Object detection in images: COCO datasets, post-processing of boxes, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from groupdetr.console.progress import CountProgress
from groupdetr.data import transforms
from groupdetr.data.check import CheckReport, check
from groupdetr.data.dataset import DetectionDataset, StepTransforms
from groupdetr.data.layouts import DatasetSplits, load, load_split
from groupdetr.data.mosaic import Mosaic
from groupdetr.data.records import CocoSplit, Record
from groupdetr.data.sample import SampleTransform
from groupdetr.data.transforms import ANY_SHAPE, PER_BATCH, PER_IMAGE, InputShape
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

# Each takes imgsz, the shape that the network needs, and the offsets of the sides of squares.
AUGMENTATIONS: dict[str, Callable[[int, InputShape, Sequence[int]], transforms.Transform]] = {
    "detr": transforms.detr_transform,
    "lsj": transforms.lsj_transform,
    "flip": transforms.flip_transform,
    "none": transforms.plain_transform,
}
# Bytes of decoded training images that all loader workers together keep at most.
MAX_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Augmentation:
    """What ``--augment`` names: a geometric transform, and what is added to it."""

    geometric: str  # a key of `AUGMENTATIONS`
    mosaic: bool = False
    photometric: bool = False
    multi_scale: str = "off"  # as in `Settings`

    @classmethod
    def named(cls, name: str, multi_scale: str = "off") -> Augmentation:
        """Return the augmentation called ``name``, such as flip or detr+mosaic+photometric.

        ``multi_scale`` as in `Settings`.
        """
        geometric, *added = name.split("+")
        if geometric not in AUGMENTATIONS:
            raise UsageError(
                f"--augment {name} is for scenes", remedy=f"for images: {', '.join(AUGMENTATIONS)}"
            )
        return cls(geometric, MOSAIC in added, PHOTOMETRIC in added, multi_scale)

    @property
    def offsets(self) -> Sequence[int]:
        """How far the sides of squares are from imgsz, in multiples that the network needs."""
        return {"off": (0,), "per-image": PER_IMAGE, "per-batch": PER_BATCH}[self.multi_scale]

    def dataset(
        self,
        records: Sequence[Record],
        imgsz: int,
        seed: int = 0,
        cache_bytes: int = 0,
        own_transform: SampleTransform | None = None,
        shape: InputShape = ANY_SHAPE,
    ) -> DetectionDataset:
        """Return the images of ``records``, augmented for a training at ``imgsz``."""
        transform: transforms.Transform | StepTransforms
        if self.multi_scale == "per-batch":
            # One transform for every side, whose images all have this side.
            sides = shape.sides(imgsz, self.offsets)
            by_side = [self.transform(side, shape, (0,)) for side in sides]
            transform = StepTransforms(by_side, seed)
        else:
            transform = self.transform(imgsz, shape, self.offsets)
        mosaic = Mosaic(imgsz) if self.mosaic else None
        return DetectionDataset(records, transform, seed, cache_bytes, mosaic, own_transform)

    def transform(
        self, imgsz: int, shape: InputShape, offsets: Sequence[int]
    ) -> transforms.Transform:
        """Return the transform of an image, after a mosaic. ``offsets`` as in `detr_transform`."""
        transform = AUGMENTATIONS[self.geometric](imgsz, shape, offsets)
        if not self.photometric:
            return transform
        # Imported here: it imports torchvision, which takes longer than torch.
        from groupdetr.data.photometric import PhotometricDistortion

        return PhotometricDistortion(transform)


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
    boxes = select_boxes(predictions.boxes, query, sizes)
    images = zip(scores.cpu(), label.cpu(), boxes.cpu())
    return [Detections(*detections) for detections in images]


def select_boxes(boxes: Tensor, query: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the boxes [B,D,4] of the queries [B,D]: x0, y0, x1, y1 in pixels of the images.

    ``boxes`` [B,N,4] are cx, cy, w, h, and ``sizes`` are (width, height) of the B images.
    """
    corners = cxcywh_to_xyxy(boxes.float())
    corners = corners.gather(1, query.unsqueeze(-1).expand(-1, -1, 4))
    scale = torch.tensor([[w, h, w, h] for w, h in sizes], device=boxes.device)
    return corners * scale.unsqueeze(1)


def expect_multi_scale(settings: Settings, shape: InputShape) -> None:
    """Raise `UsageError` for a choice of ``multi_scale`` that has no effect."""
    if settings.multi_scale == "off":
        return
    if not shape.square:
        raise UsageError(
            f"--multi-scale {settings.multi_scale} is for models whose images are squares",
            remedy="choose --multi-scale off: --augment detr draws the sizes of other images",
        )
    if settings.augment.startswith("lsj"):
        raise UsageError(
            "--augment lsj has a square of one size, so --multi-scale has no effect",
            remedy="choose --multi-scale off, or --augment detr or flip",
        )


class DetectionTask(Task[Detections]):
    """Object detection on a dataset with the splits ``train`` and ``val``.

    An image has at most ``num_detections`` detections. ``workers`` processes load the training
    images.
    """

    kind: ClassVar[str] = "box"
    input_kind: ClassVar[str] = "images"
    metrics: ClassVar[tuple[str, ...]] = METRICS[:6]
    reads_masks: ClassVar[bool] = False  # True: datasets are read with the masks of objects

    val: DetectionDataset

    def __init__(
        self,
        data: DatasetSplits,
        settings: Settings,
        num_detections: int,
        workers: int = 0,
        shape: InputShape = ANY_SHAPE,
    ) -> None:
        self.data = data
        self.settings = settings
        self.num_detections = num_detections
        self.shape = shape
        # Without workers, the training process loads the images.
        self.num_loaders = max(1, workers)
        self.augmentation = Augmentation.named(settings.augment, settings.multi_scale)
        expect_multi_scale(settings, shape)
        self.val = DetectionDataset(
            data.splits["val"].records, transforms.val_transform(settings.imgsz, shape)
        )

    # Created when it is used: an evaluation does not wait for what an augmentation imports.
    @cached_property
    def train(self) -> DetectionDataset:  # type: ignore[override]  # an attribute elsewhere
        """The training images, augmented."""
        return self.augmentation.dataset(
            self.data.splits["train"].records,
            self.settings.imgsz,
            self.settings.seed,
            MAX_CACHE_BYTES // self.num_loaders,
            shape=self.shape,
        )

    @classmethod
    def read(cls, data: Path, images: Path | None, cache: bool = False) -> DatasetSplits:
        """Read a dataset from disk, or with ``cache`` from the cache folder if it is there.

        `DataError` for the first problem that would mislead training.
        """
        return load(data, images, masks=cls.reads_masks, cache=cache)

    @classmethod
    def read_split(
        cls, data: Path, images: Path | None, split: str | None, cache: bool = False
    ) -> CocoSplit:
        """Read one split, with all of its images.

        ``split`` as in `load_split`, ``cache`` as in `read`. `UsageError` if there is no such
        split. `DataError` for the first problem that would mislead the evaluation.
        """
        return load_split(data, images, split, masks=cls.reads_masks, cache=cache)

    @classmethod
    def check(
        cls,
        data: Path,
        images: Path | None,
        num_queries: int,
        decode: bool,
        cache: bool = False,
    ) -> CheckReport:
        """Return all problems of a dataset. With ``decode``, all images are decoded."""
        with CountProgress("check") as progress:
            return check(
                data,
                images,
                num_queries,
                decode,
                masks=cls.reads_masks,
                cache=cache,
                on_progress=progress,
            )

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
            shape=self.shape,
            offsets=self.augmentation.offsets,
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
