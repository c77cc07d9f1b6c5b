"""What the web page asks for, as plain data and JPEG files, without any HTTP.

The network runs for one image at a time, whichever threads ask for it.
"""

from __future__ import annotations

import base64
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from groupdetr.data.image_input import to_rgb
from groupdetr.data.records import Record
from groupdetr.errors import DataError, UsageError
from groupdetr.evaluation.matching import match_image
from groupdetr.report.errors import MADE_UP, MISSED
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.image_detector import ImageDetector
from groupdetr.version import __version__
from groupdetr.visualize.images import PAPER, Colour, palette
from groupdetr.web.encoding import (
    MIN_SCORE,
    detections_to_json,
    encode_jpeg,
    group_pairs,
    overlaps,
)
from groupdetr.web.mistakes import KINDS, Mistakes
from groupdetr.web.validation_set import ValidationSet, load_record, truth_to_json

THUMBNAIL_SIDE = 260  # pixels
CROP_SIZE = (320, 240)  # width and height in pixels of the image of an error
CROP_MARGIN = 2.2  # the crop is so many times as wide or high as its box
MIN_CROP = 48  # pixels of the image that a crop shows at least
CONFUSED: Colour = (148, 72, 125)  # of the page's confusions
PAGE_SIZE = 48  # errors of one answer
MAX_PAGE_SIZE = 500


@dataclass(frozen=True)
class DetectorFacts:
    """What the page says about a detector before any image."""

    name: str  # what the page calls it
    model: str  # the preset
    num_groups: int
    imgsz: str  # of the input of the network, in pixels
    device: str  # that the network runs on
    note: str = ""  # why the page does not have all that it has for a run


class WebSession:
    """A detector and its validation set, as the page uses them.

    ``validation`` is None if there is no dataset, and ``no_data`` says why.
    """

    def __init__(self, detector: ImageDetector, facts: DetectorFacts) -> None:
        self.detector = detector
        self.facts = facts
        self.lock = threading.Lock()  # held whenever the network runs
        self.validation: ValidationSet | None = None
        self.no_data = ""
        self.is_closed = False
        # A few decoded images, because the errors of one image follow each other.
        self.record_image = lru_cache(maxsize=4)(self._record_image)
        self.thumbnail = lru_cache(maxsize=512)(self._thumbnail)
        self.mistakes = lru_cache(maxsize=4)(self._mistakes)  # of a score threshold

    @contextmanager
    def network(self) -> Iterator[None]:
        """Wait until the network is free. `UsageError` if the server has ended meanwhile."""
        with self.lock:
            if self.is_closed:
                raise UsageError("the server has ended")
            yield

    def close(self) -> None:
        """Wait for the image that runs through the network, and let no other one follow.

        The interpreter must not end in the middle of it.
        """
        self.is_closed = True
        with self.lock:
            pass

    def info(self) -> JsonObject:
        """Return what the page shows before any image."""
        names = self.detector.names
        return {
            "name": self.facts.name,
            "model": self.facts.model,
            "version": __version__,
            "num_groups": self.facts.num_groups,
            "groups": self.detector.group_order,
            "masks": self.detector.task.reads_masks,
            "imgsz": self.facts.imgsz,
            "device": self.facts.device,
            "note": self.facts.note,
            "classes": names,
            "class_colours": [palette(label) for label in range(len(names))],
            "group_colours": [palette(group) for group in self.detector.group_order],
            "score": self.detector.score,
            "is_best_f1": self.detector.best_threshold is not None,
            "min_score": MIN_SCORE,
            "has_validation_set": self.validation is not None,
            "no_data": self.no_data,
        }

    # Images of the user

    def detect(self, content: bytes) -> JsonObject:
        """Return the detections of every group in an image file, and the image as a JPEG file.

        `DataError` if it cannot be read. It is treated exactly as a file that `groupdetr predict`
        reads.
        """
        with self.network():
            with tempfile.TemporaryDirectory() as folder:
                # A name without ending: the content decides what it is.
                file = Path(folder) / "image"
                file.write_bytes(content)
                try:
                    image = to_rgb(file)
                except DataError as error:
                    # The user knows the file by another name.
                    raise DataError(error.what, remedy=error.remedy) from error
            groups = self.detector.detect_each_group(image)
        address = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(image)).decode()
        return {
            "width": image.width,
            "height": image.height,
            "address": address,
            "groups": [{"detections": detections_to_json(group)} for group in groups],
            "pairs": group_pairs(groups[0], groups),
        }

    # Images of the validation set

    def record(self, index: int) -> Record:
        """Return an image of the validation set. `UsageError` if there is none of this index."""
        split = None if self.validation is None else self.validation.split
        if split is None or not 0 <= index < len(split):
            raise UsageError(f"there is no image {index} in the validation set")
        return split.records[index]

    def _record_image(self, index: int) -> Image.Image:
        return load_record(self.record(index))

    def image_file(self, index: int) -> bytes:
        """Return an image of the validation set as a JPEG file."""
        return encode_jpeg(self.record_image(index))

    def _thumbnail(self, index: int) -> bytes:
        """Return a small JPEG file of an image of the validation set."""
        return encode_jpeg(load_record(self.record(index)), THUMBNAIL_SIDE)

    def crop(self, index: int, box: tuple[float, float, float, float], kind: str) -> bytes:
        """Return a part of an image around a box, which is drawn, as a JPEG file.

        The colour of the box says which ``kind`` of error it is.
        """
        image = self.record_image(index)
        width, height = CROP_SIZE
        x0, y0, x1, y1 = np.clip(box, 0, np.tile(image.size, 2)).tolist()
        scale = max(
            CROP_MARGIN * (x1 - x0) / width, CROP_MARGIN * (y1 - y0) / height, MIN_CROP / width
        )
        scale = min(scale, max(image.width / width, image.height / height))
        left = _start((x0 + x1) / 2, scale * width, image.width)
        top = _start((y0 + y1) / 2, scale * height, image.height)
        left, top = round(left), round(top)
        part = Image.new("RGB", (round(scale * width), round(scale * height)), PAPER)
        part.paste(image, (-left, -top))
        part = part.resize(CROP_SIZE, Image.Resampling.LANCZOS)
        corners = (np.array([x0, y0, x1, y1]) - np.array([left, top, left, top])) / scale
        colours = {"missed": MISSED, "false_positive": MADE_UP, "confused": CONFUSED}
        pen = ImageDraw.Draw(part)
        # A white line around the coloured one: one of them is seen on any background.
        for growth, colour, thickness in ((3, PAPER, 5), (2, colours.get(kind, MADE_UP), 3)):
            grown = corners + growth * np.array([-1, -1, 1, 1])
            pen.rectangle(grown.tolist(), outline=colour, width=thickness)
        return encode_jpeg(part)

    def image(self, index: int) -> JsonObject:
        """Return the annotations of an image, and the detections of the primary group.

        They are those of the evaluation once it has ended, and are computed before.
        """
        record = self.record(index)
        detections = self._evaluated(index)
        if detections is None:
            detections = self._detect_each_group(index)[0]
        return {
            "index": index,
            "file_name": record.file_name,
            "width": record.width,
            "height": record.height,
            "truth": truth_to_json(record),
            "groups": [self._with_matches(record, detections)],
        }

    def image_groups(self, index: int) -> JsonObject:
        """Return the detections of all groups in an image, the primary one first."""
        record = self.record(index)
        groups = self._detect_each_group(index)
        evaluated = self._evaluated(index)
        if evaluated is not None:
            groups[0] = evaluated
        return {
            "groups": [self._with_matches(record, group) for group in groups],
            "pairs": group_pairs(groups[0], groups),
        }

    def _detect_each_group(self, index: int) -> list[Detections]:
        image = self.record_image(index)
        with self.network():
            return self.detector.detect_each_group(image)

    def _evaluated(self, index: int) -> Detections | None:
        """Return the detections of the evaluation, None before it has ended."""
        validation = self.validation
        if validation is None or not validation.detections:
            return None
        return validation.detections[index]

    def _with_matches(self, record: Record, detections: Detections) -> JsonObject:
        """Return detections, the object that each is matched to, and the overlaps with objects."""
        matches = match_image(record, detections, self.detector.task.kind)
        return {
            "detections": detections_to_json(detections),
            "objects": matches.object.tolist(),
            "overlaps": overlaps(matches.ious),
        }

    def images(self, score: float, label: int | None) -> JsonObject:
        """Return the images of the validation set, those with the most errors first.

        The objects and errors that are counted are those of one class, or of all. None is counted
        before the detections are computed.
        """
        validation = self.validation
        if validation is None or validation.split is None:
            return {"images": []}
        detected = errors = np.zeros(len(validation.split), dtype=int)
        if validation.state == "done":
            mistakes = self.mistakes(score).of_class(label)
            detected = np.bincount(mistakes.detected_image, minlength=len(detected))
            errors = np.bincount(mistakes.image, minlength=len(errors))
        rows: list[JsonObject] = []
        for index, record in enumerate(validation.split.records):
            is_counted = (
                ~record.crowd if label is None else ~record.crowd & (record.labels == label)
            )
            row = {
                "image": index,
                "file_name": record.file_name,
                "objects": int(is_counted.sum()),
                "detected": int(detected[index]),
                "errors": int(errors[index]),
            }
            rows.append(row)
        return {"images": sorted(rows, key=lambda row: -row["errors"])}

    def errors(
        self, score: float, kind: str, label: int | None, start: int, count: int = PAGE_SIZE
    ) -> JsonObject:
        """Return how many errors there are at a score threshold, and ``count`` of one kind.

        `UsageError` before the detections are computed, and for a kind that does not exist.
        """
        if kind not in KINDS:
            raise UsageError(f"there is no kind of error {kind!r}")
        validation = self.validation
        if validation is None or validation.split is None or validation.state != "done":
            raise UsageError("the errors are not computed yet")
        mistakes = self.mistakes(score).of_class(label)
        of_kind = mistakes.of_kind(kind)
        items = []
        for item in of_kind.items(max(start, 0), min(max(count, 0), MAX_PAGE_SIZE)):
            file_name = validation.split.records[item.image].file_name
            items.append({**item.to_json(), "file_name": file_name})
        return {
            "summary": mistakes.summary(),
            "recorded": validation.is_recorded,
            "total": len(of_kind),
            "items": items,
        }

    def _mistakes(self, score: float) -> Mistakes:
        assert self.validation is not None, "its detections are computed"
        return self.validation.mistakes(score)


def _start(centre: float, length: float, limit: float) -> float:
    """Return where a window begins that is centred as far as it stays within 0 to ``limit``."""
    if length >= limit:
        return (limit - length) / 2
    return min(max(centre - length / 2, 0.0), limit - length)
