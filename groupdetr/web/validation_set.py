"""A validation set and the errors of a detector in it, for the web page.

The detections are those that `groupdetr val` has recorded in the folder of the run, if they are of
the same weights and the same images. Otherwise they are computed, in a thread of their own.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from groupdetr.data.image_decoding import load_image
from groupdetr.data.records import CocoSplit, Record
from groupdetr.engine.accelerator import create_single_accelerator
from groupdetr.engine.inference import map_dataset
from groupdetr.engine.task import Batch
from groupdetr.errors import DataError, GroupDETRError, UsageError
from groupdetr.evaluation.coco import from_coco_results
from groupdetr.evaluation.matching import match_image
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.structures.rle import rle_to_json
from groupdetr.tasks.detection2d.image_detector import ImageDetector
from groupdetr.tasks.detection2d.validation import evaluation_task
from groupdetr.web.mistakes import Mistakes, MistakeTable


class Stopped(Exception):
    """The server ends while the detections of the validation set are computed."""


@dataclass
class ValidationSet:
    """The images of a split, and what a detector detects in them once `compute` has ended.

    ``read`` returns the split, whose labels are class indices of the detector. ``lock`` is held
    whenever the network runs. ``recorded`` is a folder that may have the files of `groupdetr val`.
    """

    detector: ImageDetector
    lock: threading.Lock
    read: Callable[[], CocoSplit]
    recorded: Path | None = None
    data: Path | None = None  # the dataset, as the recorded files name it
    state: str = "waiting"  # then reading, computing, and done or failed
    done: int = 0  # images whose detections are computed
    error: GroupDETRError | None = None  # why it failed
    is_recorded: bool = False  # the detections are those of `groupdetr val`
    split: CocoSplit | None = None
    detections: list[Detections] = field(default_factory=list)
    table: MistakeTable | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _start_lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Begin to compute in another thread, unless it has begun before.

        Two pages may ask for it at once.
        """
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self.compute, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread, after the image that it works on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def compute(self) -> None:
        """Read the split and detect the objects in all of its images."""
        try:
            self.state = "reading"
            split = self.read()
            if not any(len(record.labels) for record in split.records):
                raise UsageError(
                    "this split has no annotations, so nothing tells what the errors are",
                    str(split.annotation_file),
                    "name a split or a dataset with annotations: --split or --data",
                )
            self.split = split
            detections = self._recorded_detections(split)
            self.is_recorded = detections is not None
            if detections is None:
                self.state = "computing"
                detections = self._detect(split)
            kind = self.detector.task.kind
            matches = [
                match_image(record, of_image, kind)
                for record, of_image in zip(split.records, detections, strict=True)
            ]
            self.table = MistakeTable(split, detections, matches)
            self.detections = detections
            self.state = "done"
        except Stopped:
            pass
        except GroupDETRError as error:
            self.error, self.state = error, "failed"
        except Exception as error:
            what = f"the errors cannot be computed: {type(error).__name__}: {error}"
            self.error, self.state = GroupDETRError(what), "failed"
            raise

    def _detect(self, split: CocoSplit) -> list[Detections]:
        """Return the detections in every image, as `groupdetr val --batch 1` computes them."""
        detector = self.detector
        task = evaluation_task(detector, split)
        accelerator = create_single_accelerator(detector.device.type)

        def predict_batch(batch: Batch) -> list[Detections]:
            if self._stop.is_set():
                raise Stopped
            # Images of the user run in between.
            with self.lock:
                return detector.detect_batch(task, batch)

        def on_progress(done: int, _total: int) -> None:
            self.done = done

        return map_dataset(predict_batch, task, accelerator, 1, 0, on_progress)

    def _recorded_detections(self, split: CocoSplit) -> list[Detections] | None:
        """Return the detections that `groupdetr val` has written, None if they are of others."""
        weights = self.detector.path
        if self.recorded is None or self.data is None or weights is None:
            return None
        file = self.recorded / "predictions.json"
        try:
            metrics = json.loads((self.recorded / "metrics.json").read_text(encoding="utf-8"))
            same_subject = (
                _same_path(metrics["weights"], weights)
                and _same_path(metrics["data"], self.data)
                and metrics["split"] == split.name
                and metrics["images"] == len(split)
            )
            is_newer = file.stat().st_mtime >= weights.stat().st_mtime
            if not same_subject or not is_newer:
                return None
            return from_coco_results(split, json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, RecursionError, TypeError, DataError):
            return None

    def progress(self) -> JsonObject:
        """Return how far the computation is, as plain data."""
        content: JsonObject = {
            "state": self.state,
            "done": self.done,
            "total": 0 if self.split is None else len(self.split),
            "recorded": self.is_recorded,
        }
        if self.error is not None:
            content["error"] = self.error.what
            content["where"] = self.error.where
            content["remedy"] = self.error.remedy
        return content

    def mistakes(self, threshold: float) -> Mistakes:
        """Return all errors of the detections with a score of at least ``threshold``."""
        assert self.table is not None, "it is there once the state is done"
        return self.table.at(threshold)


def _same_path(first: str, second: Path) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def load_record(record: Record) -> Image.Image:
    """Return the image of a record as RGB, as training and evaluation see it."""
    # The size decides if the EXIF orientation is applied, unless the format does.
    return load_image(record.path, (record.width, record.height), record.upright)


def truth_to_json(record: Record) -> Sequence[JsonObject]:
    """Return the annotations of an image, in their order, crowds included."""
    rows: list[JsonObject] = []
    for label, box, crowd in zip(record.labels.tolist(), record.corners, record.crowd.tolist()):
        corners = [round(float(coordinate), 2) for coordinate in box]
        rows.append({"label": label, "box": corners, "crowd": crowd})
    for row, segmentation in zip(rows, record.segmentations or ()):
        row["mask"] = rle_to_json(segmentation.to_rle(record.height, record.width))
    return rows
