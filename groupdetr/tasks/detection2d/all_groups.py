"""All groups of a detector on the images of a split: what they detect and match, and their time.

The groups run in one pass, and each of them is evaluated as a detector of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from groupdetr.analysis.group_pass import GroupPass, ImageGroups
from groupdetr.console.progress import CountProgress
from groupdetr.data.batch import collate
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.records import CocoSplit, Record
from groupdetr.engine.accelerator import create_single_accelerator, loader_workers
from groupdetr.engine.inference import eval_mode, use_group
from groupdetr.engine.precision import tf32_of
from groupdetr.errors import UsageError
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.task import DetectionTask

TIMED_ROUNDS = 5  # of one group and of all groups in turn


def detect_with_all_groups(
    detector: Detector,
    split: CocoSplit,
    batch: int,
    workers: int | None = None,
    label: str = "groups",
) -> list[list[Detections]]:
    """Return the detections of each of the K groups in every image of a split.

    ``label`` is that of the progress.
    """
    task = _task(detector, split)
    group_pass = _group_pass(detector, task)
    with CountProgress(label) as progress:
        return group_pass.detect(batch, loader_workers(workers), progress)


@dataclass(frozen=True)
class GroupsOnSplit:
    """A split, and what all groups of a detector detect and match in it."""

    detector: Detector
    task: DetectionTask
    split: CocoSplit  # its labels are class indices of the detector
    images: list[ImageGroups[Detections]]
    seconds_one: float  # of the network with one group, for one image
    seconds_all: float  # with all groups

    @property
    def answering(self) -> int:
        """The group that runs at inference."""
        return self.detector.recipe.inference_group or 0

    @property
    def num_groups(self) -> int:
        """K."""
        return len(self.images[0].detections)

    def of_group(self, group: int) -> list[Detections]:
        """Return the detections of one group in every image."""
        return [image.detections[group] for image in self.images]


def match_all_groups(
    detector: Detector, split: CocoSplit, batch: int, workers: int | None
) -> GroupsOnSplit:
    """Run all groups of a detector on a split, match their queries, and measure their time."""
    task = _task(detector, split)
    group_pass = _group_pass(detector, task)
    with CountProgress("groups") as progress:
        images = group_pass.detect_and_match(
            detector.recipe.criterion(), batch, loader_workers(workers), progress
        )
    one, everything = _forward_seconds(detector, task, group_pass.accelerator)
    return GroupsOnSplit(detector, task, split, images, one, everything)


def expect_objects(
    records: Sequence[Record],
    where: Path,
    remedy: str = "evaluate images with annotations of objects",
) -> None:
    """Raise `UsageError` if no image has an object besides crowds, so that no group has an AP."""
    if not any(record.trainable.any() for record in records):
        raise UsageError(
            "the groups cannot be evaluated, because these images have no annotations, or only "
            "those of crowds",
            str(where),
            remedy,
        )


def _task(detector: Detector, split: CocoSplit) -> DetectionTask:
    """Return the task whose validation images are those of a split."""
    splits = {"train": split, "val": split}
    return detector.create_task(DatasetSplits(split.annotation_file, splits))


def _group_pass(detector: Detector, task: DetectionTask) -> GroupPass[Detections]:
    """Return the pass over the images of a task, on the device of the detector."""
    return GroupPass(detector.model, task, create_single_accelerator(detector.device.type))


@torch.inference_mode()
def _forward_seconds(
    detector: Detector, task: DetectionTask, accelerator: Accelerator
) -> tuple[float, float]:
    """Return the seconds of the network for one image, with one group and with all groups.

    They are the medians of several rounds in which the two take turns, in the precision of the
    accelerator, as it detects.
    """
    model = detector.model
    images = collate([task.val[0]]).images(detector.device)
    groups = (detector.recipe.inference_group, None)
    seconds: dict[int | None, list[float]] = {group: [] for group in groups}
    with eval_mode(model), accelerator.autocast(), tf32_of(accelerator):
        for _ in range(TIMED_ROUNDS + 1):
            for group in groups:
                with use_group(model, group):
                    start = time.perf_counter()
                    # Reading a result waits until a GPU has computed it.
                    float(model(images).layers[-1].logits.sum())
                    seconds[group].append(time.perf_counter() - start)
    # The first round also allocates memory.
    one, everything = (statistics.median(seconds[group][1:]) for group in groups)
    return one, everything
