"""Prediction of objects in images and videos: `Detector`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from PIL import Image

from groupdetr.checkpoints import native
from groupdetr.data.batch import normalise
from groupdetr.data.dataset import to_pixels
from groupdetr.data.image_input import ImageInput, is_one_image, to_rgb
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.transforms import Resize, val_transform
from groupdetr.data.video import Frame
from groupdetr.engine.inference import use_group
from groupdetr.engine.ordered_threads import map_in_order
from groupdetr.engine.precision import (
    Precision,
    PrecisionChoice,
    autocast,
    choose_precision,
    expect_precision,
)
from groupdetr.engine.run_folder import RunFolder
from groupdetr.errors import DataError, UsageError
from groupdetr.ops.transfer import to_device
from groupdetr.settings import MANY, RANGES, expect_whole_number, is_number
from groupdetr.structures.detections import Detections
from groupdetr.structures.images import Images
from groupdetr.tasks.detection2d.group_detections import best_of_each_group
from groupdetr.tasks.detection2d.group_uncertainty import uncertainty_of
from groupdetr.tasks.detection2d.group_vote import (
    expect_several_groups,
    expect_vote,
    fuse_first_groups,
)
from groupdetr.tasks.detection2d.result import Result
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection2d.video_sources import AnnotatedVideo, open_source
from groupdetr.tasks.detection_result import expect_score
from groupdetr.tasks.run_or_weights import MODEL_FILE, PUSHED_CONFIG
from groupdetr.tasks.trained_detector import TrainedDetector

DEFAULT_SCORE = 0.5  # score threshold of weights without a recorded one


@dataclass(frozen=True)
class ReadImage:
    """An image that was read, and what the network takes of it."""

    image: Image.Image  # RGB, upright, at its own size
    source: str  # its path or address; "" if it has none
    input: Images  # this image as a batch of one: resized, normalised, on the network's device


class Detector(TrainedDetector):
    """A trained detector of objects in images: a run, a weights file, or a model on the hub.

    A weights file is one of this library. A model on the Hugging Face hub is ``owner/name`` or
    ``owner/name@revision``, and may also have weights of transformers.

    ``device`` is auto, cpu, cuda or mps. ``imgsz`` is the shortest side of the network's input in
    pixels, or the side of a square; None uses that of the training.

    With ``uncertainty``, all K groups of queries run, and `Result.uncertainty` and
    `Result.disagreement` say how much the groups confirm of each detection. With ``vote``, the
    detections are those of this number of groups, fused (weighted boxes fusion). Both cost a
    decoder for each group, and need a detector that was trained with several groups.

    ``precision`` is fp32, bf16, or auto: then both are measured on an empty image, and bf16 is used
    if it is clearly faster (`precision_choice`). In bf16, scores and boxes differ slightly.

    `UsageError` if there is no such run or file, if it was trained on scenes, or if it has not as
    many groups.

    >>> detector = groupdetr.Detector("runs/mine")
    >>> for result in detector.predict(["a.jpg", "b.jpg"]):
    ...     result.save(f"{result.source}-annotated.jpg")
    """

    input_kind: ClassVar[str | None] = "images"

    task: type[DetectionTask]

    def __init__(
        self,
        source: str | Path,
        device: str | torch.device = "auto",
        imgsz: int | None = None,
        *,
        uncertainty: bool = False,
        vote: int | None = None,
        precision: str = "fp32",
    ) -> None:
        expect_precision(precision)
        super().__init__(source, device, imgsz)
        expect_vote(self, vote)
        if uncertainty:
            expect_several_groups(self)
        self.uncertainty = uncertainty
        self.vote = vote
        self.best_threshold = recorded_threshold(source, self.path)
        # The score threshold of `predict` without another one
        self.score = DEFAULT_SCORE if self.best_threshold is None else self.best_threshold
        self.precision_choice: PrecisionChoice | None = None  # what was measured for "auto"
        if precision == "auto":
            self.precision_choice = self._measure_precision()
            precision = self.precision_choice.precision
        self.precision: Precision = "bf16" if precision == "bf16" else "fp32"

    @torch.inference_mode()
    def _measure_precision(self) -> PrecisionChoice:
        """Run the network on an empty square image with both precisions, and choose one."""
        side = self.input_shape.round(self.imgsz)
        images = Images.from_list([torch.zeros(3, side, side, device=self.device)])
        return choose_precision(lambda: self.model(images), self.device)

    def create_task(self, data: DatasetSplits) -> DetectionTask:
        """Return the task of the detector on a dataset that its `read` returned."""
        return self.task(data, self.settings, self.recipe.num_detections, shape=self.input_shape)

    @property
    def resize(self) -> Resize:
        """The resize of an image before the network, which is that of the validation."""
        return val_transform(self.imgsz, self.input_shape)

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        score: float | None = None,
        *,
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

        ``batch`` images are read at a time, and those of equal size run together, without padding.
        With ``show_groups``, all groups of queries run, and `Result.groups` has their boxes.
        ``workers`` threads read and resize the next images while the network computes; the results
        do not depend on it.

        `DataError` for a file that cannot be read, `UsageError` for what is not an image, for a
        score that is not from 0 to 1, and for ``show_groups`` with a detector of one group.
        """
        options = {"batch": batch, "workers": workers}
        return list(self.stream(images, score, show_groups=show_groups, **options))

    def stream(
        self,
        images: ImageInput | Iterable[ImageInput],
        score: float | None = None,
        *,
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
        if is_one_image(images):
            images = [cast(ImageInput, images)]
        sources = cast(Iterable[ImageInput], images)
        waiting: list[ReadImage] = []
        with closing(map_in_order(self.read, sources, workers, ahead=batch)) as read:
            for image in read:
                waiting.append(image)
                if len(waiting) == batch:
                    yield from self.predict_read(waiting, score, show_groups)
                    waiting = []
        yield from self.predict_read(waiting, score, show_groups)

    def read(self, source: ImageInput) -> ReadImage:
        """Read an image and resize it for the network. The errors are those of `predict`."""
        path = os.fsdecode(source) if isinstance(source, str | os.PathLike) else ""
        return self.resized(to_rgb(source), path)

    def resized(self, image: Image.Image, source: str) -> ReadImage:
        """Return an RGB image with what the network takes of it. ``source`` is its path, or ""."""
        # It is normalised here, and not where the network runs. Threads that read the next images
        # then do it while the network computes.
        pixels = to_device(to_pixels(image, self.resize).unsqueeze(0), self.device)
        no_padding = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        return ReadImage(image, source, normalise(pixels, no_padding, padded=False))

    def video(
        self,
        source: str | os.PathLike[str],
        score: float | None = None,
        *,
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
        with ExitStack() as stack:
            video = stack.enter_context(open_source(source))
            annotated = None
            if out is not None:
                annotated = stack.enter_context(AnnotatedVideo(Path(out), video.reader))
            frames = video.frames(limit)
            for result, frame in self.predict_frames(frames, video.name, score, batch, show_groups):
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
        batch: int = 1,
        show_groups: bool = False,
    ) -> Iterator[tuple[Result, Frame]]:
        """Yield the result of each frame of a video, which ``source`` names, with the frame.

        ``batch`` frames are read at a time.
        """
        read: list[Frame] = []

        def predict_read() -> Iterator[tuple[Result, Frame]]:
            images = [self.resized(frame.image, source) for frame in read]
            for result, frame in zip(self.predict_read(images, score, show_groups), read):
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
        if show_groups and self.recipe.num_groups == 1:
            raise UsageError(
                "this detector has one group of queries, so there are no others to show",
                str(self.path),
                "predict without them, or use a detector that was trained with several groups",
            )

    @torch.inference_mode()
    def predict_read(
        self, images: Sequence[ReadImage], score: float, show_groups: bool
    ) -> list[Result]:
        """Return the results of images that `read` returned.

        Those whose inputs have equal sizes run together, without padding.
        """
        indices_by_size: dict[torch.Size, list[int]] = {}
        for index, read in enumerate(images):
            indices_by_size.setdefault(read.input.pixels.shape, []).append(index)
        results: dict[int, Result] = {}
        for indices in indices_by_size.values():
            batch = one_batch([images[index].input for index in indices])
            sizes = [images[index].image.size for index in indices]
            # One list of detections for each group that runs, after that of the detector.
            needs_groups = show_groups or self.uncertainty or self.vote is not None
            detections, *groups = self._detect(batch, sizes, needs_groups)
            for position, index in enumerate(indices):
                read = images[index]
                all_detections = detections[position]
                detections_of_groups = [of_group[position] for of_group in groups]
                answering = self.recipe.inference_group
                if self.vote is not None:
                    all_detections = fuse_first_groups(
                        detections_of_groups, self.vote, answering, self.recipe.num_detections
                    )
                    answering = None
                chosen = all_detections.above(score)
                results[index] = Result(
                    image=read.image,
                    detections=chosen,
                    categories=self.categories,
                    source=read.source,
                    best_score=float(all_detections.scores[0]) if len(all_detections) else None,
                    groups=best_of_each_group(chosen, detections_of_groups)
                    if show_groups
                    else None,
                    group_uncertainty=uncertainty_of(chosen, detections_of_groups, answering)
                    if self.uncertainty
                    else None,
                )
        return [results[index] for index in range(len(images))]

    @torch.inference_mode()
    def detect_each_group(self, image: Image.Image) -> list[Detections]:
        """Return all detections of each group alone in an RGB image, whatever their score.

        The first group is the primary one. Its detections are those of `predict`.
        """
        batch = self.resized(image, "").input
        has_groups = self.recipe.num_groups > 1
        (detections,), *groups = self._detect(batch, [image.size], show_groups=has_groups)
        return [detections, *(of_group for (of_group,) in groups[1:])]

    def _detect(
        self, batch: Images, sizes: Sequence[tuple[int, int]], show_groups: bool
    ) -> list[list[Detections]]:
        """Return the detections of each image of a batch without padding, inside of the images.

        ``sizes`` are (width, height) of the original images. With ``show_groups``, the detections
        of every group alone follow.
        """
        with autocast(self.device, self.precision):
            predictions = [self.model(batch).final]
        if show_groups:
            with use_group(self.model, None), autocast(self.device, self.precision):
                outputs = self.model(batch)
            num_denoising = 0 if outputs.queries is None else outputs.queries.num_denoising
            by_group = outputs.layers[-1][:, :, num_denoising:]  # [B,K,N,.]
            predictions += [by_group[:, group] for group in range(by_group.logits.shape[1])]
        results = []
        for predictions_of_group in predictions:
            detections = self.task.postprocess(
                predictions_of_group, sizes, self.recipe.num_detections
            )
            for (width, height), of_image in zip(sizes, detections):
                # Users expect boxes inside of the image.
                limit = torch.tensor([width, height, width, height])
                of_image.boxes = of_image.boxes.clamp(min=0).minimum(limit)
            results.append(detections)
        return results


def one_batch(batches: Sequence[Images]) -> Images:
    """Return one batch of the images of several ones, which have one size and no padding."""
    if len(batches) == 1:
        return batches[0]  # not a copy
    pixels = torch.cat([batch.pixels for batch in batches])
    padding = torch.cat([batch.padding for batch in batches])
    return Images(pixels, padding, padded=False)


def recorded_threshold(source: str | Path, weights: Path) -> float | None:
    """Return the score threshold of the best F1 that the training of a run measured.

    ``weights`` is the weights file of ``source``. The threshold is in its metadata, if `groupdetr
    groups` wrote it, and in config.json beside it, if `groupdetr push` did. None for another
    weights file, and for a run whose best weights detect no object.
    """
    run, pushed = RunFolder(Path(source)), weights.parent / PUSHED_CONFIG
    try:
        if run.best_metrics.is_file():
            metrics = _json(run.best_metrics)
        else:
            metrics = native.read_metadata(weights)
            if "score_threshold" not in metrics and weights.name == MODEL_FILE:
                metrics = _json(pushed)
        threshold = metrics["score_threshold"]
    except (OSError, ValueError, LookupError, RecursionError, TypeError):
        return None
    return float(threshold) if is_number(threshold) and 0 <= threshold <= 1 else None


def _json(file: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))
