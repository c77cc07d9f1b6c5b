"""Sections of pages that compare trained detectors of images: detections, and matched queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from groupdetr.analysis.matched_queries import matched_queries
from groupdetr.console.progress import CountProgress
from groupdetr.data.image_decoding import load_image
from groupdetr.data.layouts import DatasetSplits
from groupdetr.engine.accelerator import create_single_accelerator
from groupdetr.engine.inference import run_inference
from groupdetr.report.page import Cell, Column, Html, prose, section, table
from groupdetr.report.panels import (
    DetectionPanel,
    GroupPanel,
    detection_strips,
    group_gallery,
    is_detected,
)
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.task import DetectionTask

NUM_IMAGES = 6  # with detections
NUM_GROUP_IMAGES = 6  # with the matched queries of every group
MAX_IMAGES = 500  # of validation, in which objects are counted
BATCH = 16

# What the page shows of each query, by the kind of the task.
QUERY_DESCRIPTIONS = {
    "box": "the box and the reference point",
    "mask": "the box around the mask, and its centre,",
}


@dataclass(frozen=True)
class DetectedObjects:
    """What several detectors detect in the validation images of one dataset."""

    task: DetectionTask
    class_names: Sequence[str]
    detections: Mapping[str, Sequence[Detections]]  # by detector: those of every image
    # By detector: for every image, which of its objects are detected, [T] bool
    flags: Mapping[str, Sequence[NDArray[np.bool_]]]
    objects: NDArray[np.int64]  # objects of each image

    @property
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """By detector: the objects that are detected in each image."""
        return {
            name: np.array([item.sum() for item in flags], dtype=np.int64)
            for name, flags in self.flags.items()
        }

    def both(self, first: str, second: str) -> tuple[int, int, int, int]:
        """Return how many objects both detect, only the first, only the second, and neither."""
        a = np.concatenate([np.zeros(0, dtype=bool), *self.flags[first]])
        b = np.concatenate([np.zeros(0, dtype=bool), *self.flags[second]])
        pairs = (a & b, a & ~b, ~a & b, ~a & ~b)
        return tuple(int(pair.sum()) for pair in pairs)  # type: ignore[return-value]


def detected_objects(
    data: Path,
    runs: Mapping[str, Path],
    device: str = "auto",
    images: Path | None = None,
    cache: bool = False,
) -> DetectedObjects:
    """Return what the detectors of ``runs`` detect in the first validation images of a dataset.

    In an image with T objects, the T best detections count: those with the highest scores. A common
    score threshold would favour the detector with the higher scores. ``cache`` as in
    `groupdetr.data.layouts.load`.
    """
    accelerator = create_single_accelerator(device)
    detections: dict[str, list[Detections]] = {}
    flags: dict[str, list[NDArray[np.bool_]]] = {}
    for name, run in runs.items():
        detector = Detector(run, str(accelerator.device))
        task = detector.create_task(first_images(detector.task.read(data, images, cache)))
        with CountProgress(name) as progress:
            all_detections = run_inference(detector.model, task, accelerator, BATCH, 0, progress)
        best = []
        for index, item in enumerate(all_detections):
            best.append(one_label_per_box(item)[: len(task.ground_truth(index))])
        detections[name] = best
        flags[name] = [
            is_detected(task.ground_truth(index), item) for index, item in enumerate(best)
        ]
    objects = np.array([len(task.ground_truth(index)) for index in range(len(best))])
    return DetectedObjects(task, detector.names, detections, flags, objects)


def first_images(dataset: DatasetSplits) -> DatasetSplits:
    """Return the dataset with at most `MAX_IMAGES` validation images."""
    val = dataset.splits["val"]
    fewer = replace(val, records=val.records[:MAX_IMAGES])
    return replace(dataset, splits={**dataset.splits, "val": fewer})


def one_label_per_box(detections: Detections) -> Detections:
    """Return the detections without those that have the box of a better one.

    A query may appear with several classes, the box of which is the same.
    """
    boxes = detections.boxes.double().round(decimals=2).tolist()
    first: dict[tuple[float, ...], int] = {}
    for index, box in enumerate(boxes):
        first.setdefault(tuple(box), index)
    return detections[torch.tensor(list(first.values()), dtype=torch.long)]


def detections_section(
    data: Path,
    runs: Mapping[str, Path],
    device: str = "auto",
    images: Path | None = None,
    cache: bool = False,
) -> Html:
    """Return the section that compares the detections of several runs, the last one with groups.

    It has the counts over all validation images, and the images in which the runs differ most.
    """
    detected = detected_objects(data, runs, device, images, cache)
    strips = strips_of(detected, most_different(detected))
    parts = [prose(*detection_texts(detected))]
    if len(detected.flags) > 1:
        parts.append(overlap_table(detected))
    return section("Detections", *parts, strips)


def overlap_table(detected: DetectedObjects) -> Html:
    """Return the table of what each detector detects that the last one misses, and vice versa."""
    *others, last = detected.flags
    columns = [Column("objects detected by"), Column("both", 0), Column(f"only {last}", 0)]
    columns += [Column("only the other", 0), Column("neither", 0)]
    rows: list[list[Cell]] = []
    for name in others:
        both, only_last, only_other, neither = detected.both(last, name)
        rows.append([f"{last} and {name}", both, only_last, only_other, neither])
    return table(columns, rows, "What one detector detects that the other misses.")


def detection_texts(detected: DetectedObjects) -> list[str]:
    """Return how detections are counted, the counts over all images, and how images are chosen."""
    names = list(detected.counts)
    total = int(detected.objects.sum())
    counted = "; ".join(
        f"{name}: {int(counts.sum())} ({100 * counts.sum() / max(total, 1):.0f} %)"
        for name, counts in detected.counts.items()
    )
    texts = [
        "These images were not used for training. For each detector, as many detections are drawn "
        "as the image has objects, those with the highest scores, and each box has one label. A "
        "common score threshold would favour the detector with the higher scores. An object "
        "counts as detected if a detection of its class overlaps it with a "
        f"{detected.task.kind} IoU of at least 0.5.",
        f"Of {total} objects in {len(detected.objects)} validation images are detected: {counted}.",
    ]
    if len(names) > 1:
        last = detected.counts[names[-1]]
        others = np.max([detected.counts[name] for name in names[:-1]], axis=0)
        better, worse = int((last > others).sum()), int((last < others).sum())
        texts.append(
            f"The images are not a random sample: they are those in which {names[-1]} and the best "
            f"of the others differ most, in proportion to all. {names[-1]} detects more objects in "
            f"{better} images, fewer in {worse}, and as many in {len(last) - better - worse}."
        )
    return texts


def most_different(detected: DetectedObjects, number: int = NUM_IMAGES) -> list[int]:
    """Return the images in which the last detector and the best of the others differ most.

    Images where it is better and images where it is worse are shown in proportion to all of them,
    at least one of each kind if there is one.
    """
    names = list(detected.counts)
    if len(names) < 2:
        return list(range(min(number, len(detected.objects))))
    others = np.max([detected.counts[name] for name in names[:-1]], axis=0)
    difference = detected.counts[names[-1]] - others
    better, worse = np.flatnonzero(difference > 0), np.flatnonzero(difference < 0)
    by_gain = sorted(better.tolist(), key=lambda index: -difference[index])
    by_loss = sorted(worse.tolist(), key=lambda index: difference[index])
    share = len(better) / max(1, len(better) + len(worse))
    num_better = round(number * share)
    if len(better) and len(worse):
        num_better = min(max(num_better, 1), number - 1)
    chosen = [*by_gain[:num_better], *by_loss[: number - num_better]]
    equal = [index for index in range(len(difference)) if index not in set(chosen)]
    return [*chosen, *equal][:number]


def strips_of(detected: DetectedObjects, indices: Sequence[int]) -> Html:
    """Return some images with the ground truth and the detections of every detector."""
    panels = []
    for index in indices:
        record = detected.task.val.records[index]
        # The size decides if the EXIF orientation is applied, as in training and evaluation.
        image = load_image(record.path, (record.width, record.height), record.upright)
        detections = {name: items[index] for name, items in detected.detections.items()}
        panels.append(DetectionPanel(image, detected.task.ground_truth(index), detections))
    return detection_strips(panels, detected.class_names)


def groups_section(data: Path, run: Path) -> Html:
    """Return the section that shows, for some objects, the matched query of every group."""
    detector = Detector(run, "cpu")
    task = detector.create_task(detector.task.read(data, None))
    panels = []
    for index in range(min(NUM_GROUP_IMAGES, len(task.val))):
        panels.append(group_panel(task, detector, index))
    return matched_queries_section(panels, task.kind)


def matched_queries_section(panels: Sequence[GroupPanel], kind: str) -> Html:
    """Return the section with images that have the matched queries of every group."""
    text = (
        f"For some objects (white), {QUERY_DESCRIPTIONS[kind]} of the query of each group that is "
        "matched to the object. As in the paper's Fig. 3, the queries of different groups attend "
        "to the same object from different positions, like augmentations of one query."
    )
    return section("One object and its query in every group", prose(text), group_gallery(panels))


def group_panel(task: DetectionTask, detector: Detector, index: int) -> GroupPanel:
    """Return validation image ``index`` with the queries that are matched to its objects."""
    matched = matched_queries(detector.model, detector.recipe.criterion(), task.val, index)
    record = task.val.records[index]
    image = load_image(record.path, (record.width, record.height), record.upright)
    return GroupPanel(image, matched.boxes, matched.predicted_boxes, matched.points)
