"""The abstract task of the engine: its datasets, its post-processing and its evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import torch

from groupdetr.data.check import CheckReport
from groupdetr.data.loader import CollatingDataset, ValidationLoader
from groupdetr.data.records import TrainingData
from groupdetr.data.transforms import ANY_SHAPE, InputShape
from groupdetr.settings import Settings
from groupdetr.structures.camera_images import CameraImages
from groupdetr.structures.images import Images
from groupdetr.structures.json_object import JsonObject
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Target

DetectionsT = TypeVar("DetectionsT")  # the detections in one image or scene


class EvaluationResult(Protocol):
    """The result of an evaluation."""

    @property
    def stats(self) -> dict[str, float]:
        """Metrics by name. The first one decides which checkpoint is the best."""
        ...

    def to_json(self) -> JsonObject:
        """Return the content of metrics.json."""
        ...

    def details(self) -> JsonObject | None:
        """Return what the page of the run shows beyond the metrics, None if there is nothing."""
        ...


class Batch(Protocol):
    """A batch from a data loader: one image, or one scene of several cameras, for each target."""

    targets: list[Target]
    indices: list[int]  # of the images in their dataset

    def images(self, device: torch.device) -> Images | CameraImages:
        """Return the input of the network, normalised, on ``device``."""
        ...


class WorstCaseBatch(Protocol):
    """The largest batches that a training can draw, to measure how much memory it needs."""

    def pixels(self, num_images: int) -> int:
        """Return the number of pixels of a batch of ``num_images`` images."""
        ...

    def batch(self, num_images: int) -> Batch:
        """Return a batch of ``num_images`` images that needs as much memory as the largest one."""
        ...


class Task(ABC, Generic[DetectionsT]):
    """A task: object detection, instance segmentation or 3D detection on one dataset."""

    kind: ClassVar[str]  # what the metrics measure: "box", "mask" or "box3d"
    input_kind: ClassVar[str]  # "images" or "scenes"
    # Shown during training. The first one decides which checkpoint is the best.
    metrics: ClassVar[tuple[str, ...]]

    train: CollatingDataset[Batch]
    val: CollatingDataset[Batch]

    @abstractmethod
    def __init__(
        self,
        data: TrainingData,
        settings: Settings,
        num_detections: int,
        workers: int = 0,
        shape: InputShape = ANY_SHAPE,
    ) -> None:
        """``data`` is what `read` returned; an image has at most ``num_detections`` detections.

        ``workers`` processes load the training images. ``shape`` is what the network needs of the
        shape of its images. `UsageError` if the task cannot give images of that shape.
        """

    @cached_property
    def val_loader(self) -> ValidationLoader[Batch]:
        """Loads the validation images, with the same worker processes in every evaluation."""
        return ValidationLoader(self.val)

    @classmethod
    @abstractmethod
    def read(cls, data: Path, images: Path | None, cache: bool = False) -> TrainingData:
        """Read a dataset from disk, or with ``cache`` from the cache folder if it is there.

        `DataError` for the first problem that would mislead training.
        """

    @classmethod
    @abstractmethod
    def check(
        cls,
        data: Path,
        images: Path | None,
        num_queries: int,
        decode: bool,
        cache: bool = False,
    ) -> CheckReport:
        """Return all problems of a dataset. With ``decode``, all images are decoded.

        ``cache`` as in `read`.
        """

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """Bytes of decoded training images that all loader workers together keep at most."""

    @abstractmethod
    def worst_case(self, query_count: Callable[[int], int]) -> WorstCaseBatch:
        """Return the largest batches of the training.

        ``query_count(n)`` is the number of queries per group for n objects. It is not monotonic:
        with denoising, more objects can mean fewer copies.
        """

    @abstractmethod
    def postprocess_val(
        self, predictions: Predictions, indices: Sequence[int]
    ) -> list[DetectionsT]:
        """Return the detections of validation images ``indices`` from predictions [B,N,.]."""

    @abstractmethod
    def evaluate(self, detections: Sequence[DetectionsT]) -> EvaluationResult:
        """Evaluate the detections of all validation images, in the order of the dataset."""

    @abstractmethod
    def train_image_names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of training images or samples, for messages."""
