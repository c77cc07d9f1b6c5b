"""Further files of `groupdetr predict`: YOLO labels, COCO results, and crops of the detections."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groupdetr.console.text import file_name, quantity
from groupdetr.files.json_array import JsonArrayFile
from groupdetr.files.replacing import expect_folder, expect_replaceable
from groupdetr.files.writing import write_atomically
from groupdetr.tasks.annotated_images import is_annotated, save_annotated
from groupdetr.tasks.detection2d.result import Result

LABELS, CROPS, COCO_RESULTS = "labels", "crops", "coco_results.json"
LABEL_COLUMNS = 6  # class, cx, cy, width, height, score; an annotation has no score
_CROP_NAME = re.compile(r"(.+)-\d+")
_COCO_RESULTS = re.compile(rb'\s*\[\s*(\]|\{\s*"image_id":)')


@dataclass
class PredictionFiles:
    """The files that the options --save-txt, --save-json and --save-crops write.

    They go to the folder ``out``: labels/NAME.txt, coco_results.json and crops/CLASS/NAME-1.jpg.
    The NAME of an image is that of its annotated copy. That of frame 7 of a video is
    VIDEO/000007, so each video has a folder of its own.
    """

    out: Path
    save_txt: bool = False
    save_json: bool = False
    save_crops: bool = False
    num_labels: int = 0
    num_crops: int = 0
    # Crops of earlier predictions, by the name of the image, or of the video.
    old_crops: dict[str, list[Path]] = field(default_factory=dict)
    # Label files of earlier predictions in videos, by the name of the video.
    old_labels: dict[str, list[Path]] = field(default_factory=dict)
    image_ids: dict[str, int | str] = field(default_factory=dict)
    _results: JsonArrayFile | None = None

    def prepare(self, paths: Sequence[Path], names: Sequence[str], remedy: str) -> None:
        """Find what earlier predictions of images wrote. ``names`` are those of the files.

        `UsageError` with ``remedy`` if a file would be replaced that `predict` did not write.
        """
        if self.save_txt:
            expect_folder(self.out / LABELS)
            expect_replaceable([self._label_file(name) for name in names], is_label_file, remedy)
        if self.save_json:
            expect_replaceable([self.out / COCO_RESULTS], is_coco_results, remedy)
            self.image_ids = dict(zip(names, coco_image_ids(paths, names)))
        if self.save_crops:
            expect_folder(self.out / CROPS)
            crops = defaultdict(list)
            for path in sorted((self.out / CROPS).glob("*/*")):
                if path.is_file() and (match := _CROP_NAME.fullmatch(path.stem)):
                    crops[match[1]].append(path)
            self.old_crops |= {name: crops[name] for name in names}
            files = [path for of_image in self.old_crops.values() for path in of_image]
            expect_replaceable(files, is_annotated, remedy)

    def prepare_videos(self, names: Sequence[str], remedy: str) -> None:
        """Find what earlier predictions of videos wrote, given the names of their folders.

        `UsageError` as for `prepare`.
        """
        for name in names:
            if self.save_txt:
                labels = sorted((self.out / LABELS / name).glob("*"))
                expect_replaceable(labels, is_label_file, remedy)
                self.old_labels[name] = labels
            if self.save_crops:
                folders = sorted((self.out / CROPS).glob("*/*"))
                crops = [
                    path
                    for folder in folders
                    if folder.is_dir() and folder.name == name
                    for path in sorted(folder.iterdir())
                ]
                expect_replaceable(crops, is_annotated, remedy)
                self.old_crops[name] = crops

    def begin_video(self, name: str) -> None:
        """Remove the files of an earlier prediction of a video, which had other detections."""
        for path in [*self.old_labels.get(name, ()), *self.old_crops.get(name, ())]:
            path.unlink(missing_ok=True)

    def write(self, result: Result, name: str, suffix: str) -> None:
        """Write the files of one image or frame. ``suffix`` is that of the crops."""
        if self.save_txt:
            self._write_labels(result, name)
        if self.save_json:
            for entry in result.to_coco(self.image_ids.get(name, name)):
                self._coco_results.append(entry)
        if self.save_crops:
            self._write_crops(result, name, suffix)

    @property
    def _coco_results(self) -> JsonArrayFile:
        if self._results is None:
            self._results = JsonArrayFile(self.out / COCO_RESULTS)
        return self._results

    def finish(self) -> list[str]:
        """Write the end of the file of all images, and return a line for each kind of file."""
        lines = []
        if self.save_txt:
            lines.append(f"{quantity(self.num_labels, 'label file')} in {self.out / LABELS}")
        if self.save_json:
            self._coco_results.close()
            number = quantity(self._coco_results.count, "detection")
            lines.append(f"{number} in {self.out / COCO_RESULTS}")
        if self.save_crops:
            lines.append(f"{quantity(self.num_crops, 'crop')} in {self.out / CROPS}")
        return lines

    def discard(self) -> None:
        """Remove the draft of the file of all images."""
        if self._results is not None:
            self._results.discard()

    def _label_file(self, name: str) -> Path:
        return self.out / LABELS / f"{name}.txt"

    def _write_labels(self, result: Result, name: str) -> None:
        """Write a line for each detection. As in Ultralytics, no detection means no file."""
        file = self._label_file(name)
        lines = label_lines(result)
        if not lines:
            file.unlink(missing_ok=True)  # that of an earlier prediction, with other detections
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        content = "".join(f"{line}\n" for line in lines).encode()
        # As annotated images, they can be made again.
        write_atomically(file, lambda opened: opened.write(content), survives_power_loss=False)
        self.num_labels += 1

    def _write_crops(self, result: Result, name: str, suffix: str) -> None:
        for path in self.old_crops.get(name, ()):
            path.unlink(missing_ok=True)
        width, height = result.image.size
        for number, (class_name, box) in enumerate(zip(result.names, result.boxes.tolist()), 1):
            # Whole pixels around the box, at least one.
            left, top = min(math.floor(box[0]), width - 1), min(math.floor(box[1]), height - 1)
            right, bottom = max(math.ceil(box[2]), left + 1), max(math.ceil(box[3]), top + 1)
            file = self.out / CROPS / file_name(class_name) / f"{name}-{number}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            crop = result.image.crop((left, top, right, bottom))
            # The mark of annotated images keeps crops out of later predictions of this folder.
            save_annotated(crop, file)
            self.num_crops += 1


def label_lines(result: Result) -> list[str]:
    """Return the detections of an image as lines of a YOLO label file with scores.

    A line is class, cx, cy, width, height, score. The class is an index into the classes of the
    detector, and the box is a fraction of the image.
    """
    width, height = result.image.size
    lines = []
    for label, score, box in zip(result.labels, result.scores, result.boxes.tolist()):
        x0, y0, x1, y1 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
        numbers = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, float(score))
        lines.append(" ".join([str(label), *(f"{number:.6f}" for number in numbers)]))
    return lines


def is_label_file(path: Path) -> bool:
    """True if a file has lines of six columns, as `label_lines` writes them.

    Annotations have five columns, or an odd number of them for polygons, and are never replaced.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False
    return bool(lines) and all(len(line.split()) == LABEL_COLUMNS for line in lines)


def is_coco_results(path: Path) -> bool:
    """True if a file begins like a COCO results file."""
    try:
        with path.open("rb") as file:
            return _COCO_RESULTS.match(file.read(1000)) is not None
    except OSError:
        return False


def coco_image_ids(paths: Sequence[Path], names: Sequence[str]) -> list[int] | list[str]:
    """Return the image id of each image in a COCO results file.

    The images of COCO are named after their ids: 000000000139.jpg is image 139. If all names are
    different numbers, these are the ids. Otherwise they are ``names``, those of the annotated
    copies without the ending, which are different even if the images lie in several folders.
    """
    stems = [path.stem for path in paths]
    if all(stem.isdecimal() and stem.isascii() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(names)
