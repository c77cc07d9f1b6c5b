"""What every detector of objects in images does, whatever computes its network."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from groupdetr.data.image_input import ImageInput, is_one_image, to_rgb
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.video import Frame
from groupdetr.engine.ordered_threads import map_in_order
from groupdetr.engine.task import Batch
from groupdetr.errors import DataError, UsageError
from groupdetr.settings import MANY, RANGES, expect_whole_number
from groupdetr.structures.detections import Detections
from groupdetr.structures.images import Images
from groupdetr.tasks.detection2d.result import Result
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection2d.video_sources import AnnotatedVideo, open_source
from groupdetr.tasks.detection_result import expect_score

DEFAULT_SCORE = 0.5  # score threshold of weights without a recorded one


@dataclass(frozen=True)
class ReadImage:
    """An image that was read, and what the network takes of it."""

    image: Image.Image  # RGB, upright, at its own size
    source: str  # its path or address; "" if it has none
    input: Images  # this image as a batch of one, as the network takes it


# Returns the result of an image, given the score threshold and the labels of the classes that are
# detected, None for all. The network has computed the image; the rest is done when this is called.
PendingResult = Callable[[float, Sequence[int] | None], Result]


class ImageDetector(ABC):
    """A detector of objects in images and videos.

    `groupdetr.Detector` computes its network in PyTorch, and `groupdetr.ExportedDetector` in the
    runtime that it was exported for.
    """

    # (id in the dataset, name) of every class, in the order of the classes
    categories: list[tuple[int | str, str]]
    # The score threshold of the best F1, as the training of a run measured it. None if it is not
    # recorded
    best_threshold: float | None
    path: Path | None  # the file of the weights, or of the exported network
    device: torch.device  # that the network runs on
    task: type[DetectionTask]  # what reads datasets for it, and evaluates its detections

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return [name for _, name in self.categories]

    @property
    def score(self) -> float:
        """The score threshold of `predict` without another one."""
        return DEFAULT_SCORE if self.best_threshold is None else self.best_threshold

    def labels_of(self, classes: Sequence[str] | None) -> list[int] | None:
        """Return the labels of the classes that are named; None for None, which is all classes.

        `UsageError` if there is no name, or one that no class of the detector has.
        """
        if classes is None:
            return None
        names = self.names
        if isinstance(classes, str) or not classes:
            raise UsageError(
                "no class was named" if not classes else f"classes={classes!r} is not a list",
                remedy=f"name some of the {len(names)} classes, such as {names[0]!r}",
            )
        for name in classes:
            if name not in names:
                similar = get_close_matches(name, names, n=1) or names[:3]
                raise UsageError(
                    f"this detector has no class {name!r}",
                    remedy=f"name some of its {len(names)} classes, such as {similar[0]!r}",
                )
        return [label for label, name in enumerate(names) if name in classes]

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        score: float | None = None,
        *,
        classes: Sequence[str] | None = None,
        batch: int = 1,
        show_groups: bool = False,
        workers: int = 0,
    ) -> list[Result]:
        """Return the detections in each image whose score is at least ``score``.

        ``score`` None is the threshold with the best F1 that the training of a run measured, and
        0.5 for other weights.

        An image is a path, an address (http or https), a PIL image of any mode, an array [H,W,3] or
        [H,W], or a tensor [3,H,W]. All of them give the same detections. Arrays and tensors are in
        RGB, of bytes, of 16 bits, or of floats in [0,1]. With an opacity as the last channel,
        transparent pixels are white.

        ``classes`` are names: only detections of these classes are returned. None: of all classes.

        ``batch`` images are read at a time, and those of equal size run together, without padding.
        With ``show_groups``, all groups of queries run, and `Result.groups` has their boxes.
        ``workers`` threads read and resize the next images while the network computes; the results
        do not depend on it.

        `DataError` for a file that cannot be read, `UsageError` for what is not an image, for a
        score that is not from 0 to 1, for a class that the detector does not have, and for
        ``show_groups`` with a detector of one group.
        """
        results = self.stream(
            images, score, classes=classes, batch=batch, show_groups=show_groups, workers=workers
        )
        return list(results)

    def stream(
        self,
        images: ImageInput | Iterable[ImageInput],
        score: float | None = None,
        *,
        classes: Sequence[str] | None = None,
        batch: int = 1,
        show_groups: bool = False,
        workers: int = 0,
    ) -> Iterator[Result]:
        """Yield the same results as `predict`, image by image.

        With ``workers``, some more images than ``batch`` are taken before the first result.
        """
        score = self.score if score is None else score
        self.expect_options(score, batch, show_groups)
        expect_whole_number("workers", workers, *RANGES["workers"])
        labels = self.labels_of(classes)
        if is_one_image(images):
            images = [cast(ImageInput, images)]
        sources = cast(Iterable[ImageInput], images)
        waiting: list[ReadImage] = []
        with closing(map_in_order(self.read, sources, workers, ahead=batch)) as read:
            for image in read:
                waiting.append(image)
                if len(waiting) == batch:
                    yield from self.predict_read(waiting, score, labels, show_groups)
                    waiting = []
        yield from self.predict_read(waiting, score, labels, show_groups)

    def read(self, source: ImageInput) -> ReadImage:
        """Read an image and resize it for the network. The errors are those of `predict`."""
        path = os.fsdecode(source) if isinstance(source, str | os.PathLike) else ""
        return self.resized(to_rgb(source), path)

    @abstractmethod
    def resized(self, image: Image.Image, source: str) -> ReadImage:
        """Return an RGB image with what the network takes of it. ``source`` is its path, or ""."""

    def video(
        self,
        source: str | os.PathLike[str],
        score: float | None = None,
        *,
        classes: Sequence[str] | None = None,
        batch: int = 1,
        show_groups: bool = False,
        limit: int | None = None,
        out: str | Path | None = None,
    ) -> Iterator[Result]:
        """Yield the detections in each frame of a video, frame by frame, as it is read.

        ``source`` is a video file, its address (http or https), or a camera: ``"camera:0"``, or the
        number alone. A camera never ends, and frames that it sends while a frame is processed are
        left out. The other arguments are those of `predict`. ``limit`` is the largest number of
        frames. ``out`` is an MP4 file, to which the annotated frames are written. It is complete
        when all results were taken, or when the iterator is closed.

        `Result.frame` is the index of the frame, and `Result.time` are the seconds since the first
        one. It needs ``pip install 'groupdetr[video]'``.

        `DataError` for a file that is not a video, and after the last frame of one that ends too
        early. `UsageError` without PyAV, and if ``out`` is a file that this library did not write.

        >>> for result in detector.video("street.mp4", out="annotated.mp4"):
        ...     print(f"{result.time:.2f} s: {result.counts}")
        """
        score = self.score if score is None else score
        self.expect_options(score, batch, show_groups)
        expect_whole_number("limit", limit, 1, MANY)
        labels = self.labels_of(classes)
        with ExitStack() as stack:
            video = stack.enter_context(open_source(source))
            annotated = None
            if out is not None:
                annotated = stack.enter_context(AnnotatedVideo(Path(out), video.reader))
            frames = video.frames(limit)
            for result, frame in self.predict_frames(
                frames, video.name, score, labels, batch, show_groups
            ):
                if annotated is not None:
                    annotated.add(result.draw(), frame)
                yield result
            problem = video.reader.problem
        if problem:
            raise DataError(f"not all of this video could be read: {problem}", video.name)

    def predict_frames(
        self,
        frames: Iterable[Frame],
        source: str,
        score: float,
        labels: Sequence[int] | None = None,
        batch: int = 1,
        show_groups: bool = False,
    ) -> Iterator[tuple[Result, Frame]]:
        """Yield the result of each frame of a video, which ``source`` names, with the frame.

        ``labels`` are those of the classes that are detected; None: all. ``batch`` frames are read
        at a time.
        """
        read: list[Frame] = []

        def predict_read() -> Iterator[tuple[Result, Frame]]:
            images = [self.resized(frame.image, source) for frame in read]
            results = self.predict_read(images, score, labels, show_groups)
            for result, frame in zip(results, read):
                yield replace(result, frame=frame.index, time=frame.time), frame

        for frame in frames:
            read.append(frame)
            if len(read) == batch:
                yield from predict_read()
                read.clear()
        yield from predict_read()

    def expect_options(self, score: float, batch: int, show_groups: bool) -> None:
        """Raise `UsageError` for options of `predict` that this detector cannot follow."""
        expect_score(score)
        expect_whole_number("batch", batch, *RANGES["batch"])

    def predict_read(
        self,
        images: Sequence[ReadImage],
        score: float,
        labels: Sequence[int] | None,
        show_groups: bool,
    ) -> list[Result]:
        """Return the results of images that `read` returned, in the same order.

        ``labels`` are those of the classes that are detected; None: all.
        """
        return [pending(score, labels) for pending in self.run_network(images, show_groups)]

    @abstractmethod
    def run_network(self, images: Sequence[ReadImage], show_groups: bool) -> list[PendingResult]:
        """Run the network on images that `read` returned. Return the result of each, to be called.

        Other threads may call them while the network computes the next images.
        """

    @abstractmethod
    def create_task(self, data: DatasetSplits) -> DetectionTask:
        """Return the task of the detector on a dataset that its `task` has read.

        Its validation images are resized as this detector needs them.
        """

    @abstractmethod
    def detect_batch(self, task: DetectionTask, batch: Batch) -> list[Detections]:
        """Return the detections in a batch of validation images of ``task``, whatever their score.

        They are those that `groupdetr val` evaluates: boxes may reach outside of the images.
        """

    @property
    @abstractmethod
    def group_order(self) -> list[int]:
        """The numbers of the groups, in the order in which `detect_each_group` returns them."""

    @abstractmethod
    def detect_each_group(self, image: Image.Image) -> list[Detections]:
        """Return all detections of each group alone in an RGB image, whatever their score.

        The first group is the primary one. Its detections are those of `predict`. Groups that
        answer together count as one.
        """


def of_equal_size(inputs: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of the inputs of a network that have equal sizes, together."""
    indices_by_size: dict[tuple[int, ...], list[int]] = {}
    for index, pixels in enumerate(inputs):
        indices_by_size.setdefault(tuple(pixels.shape), []).append(index)
    return list(indices_by_size.values())


def inside(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return boxes [D,4] in pixels, clipped to an image of ``image_size``, (width, height)."""
    limit = torch.tensor([*image_size, *image_size])
    return boxes.clamp(min=0).minimum(limit)
