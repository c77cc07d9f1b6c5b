"""Prediction of objects in images and videos: `Detector`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from groupdetr.analysis.box_fusion import fuse_groups
from groupdetr.checkpoints import native
from groupdetr.data.batch import normalise
from groupdetr.data.dataset import to_pixels
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.transforms import Resize, val_transform
from groupdetr.engine.inference import eval_mode, use_group
from groupdetr.engine.precision import (
    Precision,
    PrecisionChoice,
    choose_precision,
    expect_precision,
    in_precision,
)
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.task import Batch
from groupdetr.errors import UsageError
from groupdetr.groups import groups_are_separate
from groupdetr.ops.transfer import to_device
from groupdetr.settings import is_number
from groupdetr.structures.detections import Detections
from groupdetr.structures.images import Images
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.group_detections import best_of_each_group
from groupdetr.tasks.detection2d.group_uncertainty import uncertainty_of
from groupdetr.tasks.detection2d.group_vote import (
    expect_several_groups,
    expect_vote,
    voting_groups,
)
from groupdetr.tasks.detection2d.image_detector import (
    ImageDetector,
    PendingResult,
    ReadImage,
    inside,
    of_equal_size,
)
from groupdetr.tasks.detection2d.result import Result
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.run_or_weights import MODEL_FILE, PUSHED_CONFIG
from groupdetr.tasks.trained_detector import TrainedDetector


class Detector(TrainedDetector, ImageDetector):
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
    path: Path  # of the weights

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
        """Return the task of the detector on a dataset that its `task` has read."""
        return self.task(data, self.settings, self.recipe.num_detections, shape=self.input_shape)

    def detect_batch(self, task: DetectionTask, batch: Batch) -> list[Detections]:
        """Return the detections in a batch of validation images of ``task``, whatever their score.

        They are those that `groupdetr val` evaluates: boxes may reach outside of the images.
        """
        with eval_mode(self.model):
            with in_precision(self.device, self.precision):
                predictions = self.model(batch.images(self.device)).final
            return task.postprocess_val(predictions, batch.indices)

    @property
    def resize(self) -> Resize:
        """The resize of an image before the network, which is that of the validation."""
        return val_transform(self.imgsz, self.input_shape)

    def resized(self, image: Image.Image, source: str) -> ReadImage:
        """Return an RGB image with what the network takes of it. ``source`` is its path, or ""."""
        # It is normalised here, and not where the network runs. Threads that read the next images
        # then do it while the network computes.
        pixels = to_device(to_pixels(image, self.resize).unsqueeze(0), self.device)
        no_padding = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        return ReadImage(image, source, normalise(pixels, no_padding, padded=False))

    def expect_options(self, score: float, batch: int, show_groups: bool) -> None:
        """Raise `UsageError` for options of `predict` that this detector cannot follow."""
        super().expect_options(score, batch, show_groups)
        if show_groups and self.recipe.num_groups == 1:
            raise UsageError(
                "this detector has one group of queries, so there are no others to show",
                str(self.path),
                "predict without them, or use a detector that was trained with several groups",
            )

    @torch.inference_mode()
    def run_network(self, images: Sequence[ReadImage], show_groups: bool) -> list[PendingResult]:
        """Run the network on images that `read` returned. Return the result of each, to be called.

        Images whose inputs have equal sizes run together, without padding.
        """
        groups = self._groups_to_run(show_groups)
        results: dict[int, PendingResult] = {}
        for indices in of_equal_size([read.input.pixels for read in images]):
            batch = one_batch([images[index].input for index in indices])
            predictions = self._predictions(batch, groups)
            for position, index in enumerate(indices):
                of_image = [of_group[position : position + 1] for of_group in predictions]
                read = images[index]
                # Without its input, whose memory is then free for the next images.
                results[index] = partial(
                    self._result, read.image, read.source, of_image, groups, show_groups
                )
        return [results[index] for index in range(len(images))]

    def _groups_to_run(self, show_groups: bool) -> list[int]:
        """Return the groups whose own detections a result needs, in rising order."""
        num_groups = self.recipe.num_groups
        if show_groups or self.uncertainty:
            return [*range(num_groups)]
        if self.vote is not None:
            return sorted(voting_groups(num_groups, self.vote, self.recipe.inference_group))
        return []

    @torch.inference_mode()
    def _result(
        self,
        image: Image.Image,
        source: str,
        predictions: Sequence[Predictions],
        groups: Sequence[int],
        show_groups: bool,
        score: float,
        labels: Sequence[int] | None,
    ) -> Result:
        """Return the result of an image, given what `_predictions` returned for these groups."""
        all_detections, *detections_of_groups = (
            self._detections(of_group, image.size) for of_group in predictions
        )
        answering: int | None = self.recipe.inference_group
        if self.vote is not None:
            voting = voting_groups(self.recipe.num_groups, self.vote, answering)
            votes = [detections_of_groups[groups.index(group)] for group in voting]
            all_detections = fuse_groups(votes, self.recipe.num_detections).detections
            answering = None
        if labels is not None:
            all_detections = all_detections.of_classes(labels)
        chosen = all_detections.above(score)
        return Result(
            image=image,
            detections=chosen,
            categories=self.categories,
            source=source,
            best_score=float(all_detections.scores[0]) if len(all_detections) else None,
            groups=best_of_each_group(chosen, detections_of_groups) if show_groups else None,
            group_uncertainty=uncertainty_of(chosen, detections_of_groups, answering)
            if self.uncertainty
            else None,
        )

    @property
    def group_order(self) -> list[int]:
        """The numbers of the groups, in the order in which `detect_each_group` returns them."""
        num_groups, primary = self.recipe.num_groups, self.recipe.inference_group
        return [0] if primary is None else voting_groups(num_groups, num_groups, primary)

    @torch.inference_mode()
    def detect_each_group(self, image: Image.Image) -> list[Detections]:
        """Return all detections of each group alone in an RGB image, whatever their score.

        The first group is the primary one. Its detections are those of `predict`. Groups that
        answer together count as one.
        """
        order = self.group_order
        batch = self.resized(image, "").input
        if len(order) == 1:
            chosen = self._predictions(batch)
        else:
            groups = self._predictions(batch, sorted(order))[1:]
            chosen = [groups[group] for group in order]
        return [self._detections(of_group, image.size) for of_group in chosen]

    def _predictions(self, batch: Images, groups: Sequence[int] = ()) -> list[Predictions]:
        """Return what the detector predicts in a batch without padding, [B,N,.].

        The predictions of each of ``groups`` alone follow. They are numbers in rising order.
        """
        answering = self.recipe.inference_group
        by_number: dict[int, Predictions] = {}
        with in_precision(self.device, self.precision):
            if groups:
                with use_group(self.model, tuple(groups)):
                    group_predictions = self.model(batch).final_of_groups  # [B,K,N,.]
                by_number = {group: group_predictions[:, i] for i, group in enumerate(groups)}
            # Groups that do not attend to each other predict the same alone, so that the network
            # need not run again for the one that answers.
            is_separate = groups_are_separate(self.recipe.group_attention)
            if is_separate and answering is not None and answering in by_number:
                answer = by_number[answering]
            else:
                answer = self.model(batch).final
        return [answer, *by_number.values()]

    def _detections(self, predictions: Predictions, size: tuple[int, int]) -> Detections:
        """Return all detections in an image of ``size`` (width, height), inside of the image.

        ``predictions`` [1,N,.] are those of one group.
        """
        (detections,) = self.task.postprocess(predictions, [size], self.recipe.num_detections)
        # Users expect boxes inside of the image.
        detections.boxes = inside(detections.boxes, size)
        return detections


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
