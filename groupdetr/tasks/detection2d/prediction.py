"""Prediction of objects in images: `Detector`, `Result` and the function of `groupdetr predict`."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from groupdetr.console.output import create_console
from groupdetr.console.text import escape_controls, quote
from groupdetr.data.batch import normalise
from groupdetr.data.dataset import to_pixels
from groupdetr.data.image_files import ImageSearch, merge_searches, named_files, search_folder
from groupdetr.data.image_input import ImageInput, is_one_image, to_rgb
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.transforms import val_transform
from groupdetr.data.wrong_inputs import PASS_IMAGES, describe_missing_image
from groupdetr.engine.progress import with_progress
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import DataError, UsageError, unreadable_inputs
from groupdetr.files.replacing import expect_replaceable
from groupdetr.structures.detections import Detections, decode_mask
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.annotated_images import is_annotated
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection_result import DetectionResult, expect_score, hint_at_lower_score
from groupdetr.tasks.output_files import is_predictions
from groupdetr.tasks.trained_detector import TrainedDetector
from groupdetr.visualize.images import draw_detections

if TYPE_CHECKING:
    import supervision

DEFAULT_SCORE = 0.5  # score threshold of `groupdetr predict`
_MAX_STEM = 200  # bytes of the name of an annotated copy; file systems allow 255 with the ending


@dataclass(repr=False)
class Result(DetectionResult):
    """The detections in one image, sorted by decreasing score. A notebook shows them in the image.

    ``labels`` are indices into the classes of the detector, ``ids`` are the category ids of the
    dataset, and ``names`` are the names of the classes.

    >>> result = groupdetr.Detector("runs/mine").predict("photo.jpg", score=0.3)[0]
    >>> for name, score, box in zip(result.names, result.scores, result.boxes):
    ...     print(f"{name} {score:.2f}", box.round())
    >>> result.save("annotated.jpg")
    """

    image: Image.Image  # in RGB, rotated according to its EXIF orientation
    detections: Detections  # their tensors, and the masks as run lengths
    categories: Sequence[tuple[int | str, str]]  # (id in the dataset, name) of every class
    source: str = ""  # the path of the image, if it has one
    best_score: float | None = None  # the highest of all scores, those below the threshold included

    @property
    def source_files(self) -> list[Path]:
        """The file of the original image, if it came from one."""
        return [Path(self.source)] if self.source else []

    @property
    def class_names(self) -> list[str]:
        """The names of all classes of the detector. Labels are indices into it."""
        return [name for _, name in self.categories]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """[D,4] x0, y0, x1, y1 in pixels."""
        boxes: NDArray[np.float32] = self.detections.boxes.numpy()
        return boxes

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """[D,H,W] bool at the size of the image; None if the detector predicts boxes only.

        Masks are stored as run lengths in ``detections.masks``. Every access decodes them again.
        """
        rles = self.detections.masks
        if rles is None:
            return None
        masks = np.zeros((len(rles), self.image.height, self.image.width), dtype=bool)
        for index, rle in enumerate(rles):
            masks[index] = decode_mask(rle)
        return masks

    @property
    def ids(self) -> list[int | str]:
        """The category id of every detection, as in the dataset."""
        return [self.categories[label][0] for label in self.labels]

    def to_coco(self, image_id: int | str | None = None) -> list[JsonObject]:
        """Return COCO results with the category ids of the dataset.

        Boxes are [x, y, width, height], masks are compressed run lengths. Without ``image_id`` the
        path of the image is used.
        """
        rows = zip(
            self.ids,
            self.detections.xywh().tolist(),
            self.scores.tolist(),
            self.detections.segmentations(),
        )
        results = []
        for category_id, box, score, segmentation in rows:
            result = {
                "image_id": self.source if image_id is None else image_id,
                "category_id": category_id,
                "bbox": box,
                "score": score,
            }
            results.append(result | segmentation)
        return results

    def to_supervision(self) -> supervision.Detections:
        """Return ``supervision.Detections``. It needs ``pip install 'groupdetr[supervision]'``."""
        try:
            import supervision
        except ImportError as error:
            raise UsageError(
                "supervision is not installed", remedy="pip install 'groupdetr[supervision]'"
            ) from error
        return supervision.Detections(
            self.boxes,
            self.masks,
            self.scores,
            self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(self) -> Image.Image:
        """Return a copy of the image with its boxes and masks."""
        return draw_detections(self.image, self.detections, self.captions)


class Detector(TrainedDetector):
    """A trained detector of objects in images: a run, or a weights file of this library.

    ``device`` is auto, cpu, cuda or mps. ``imgsz`` is the shortest side of the network's input in
    pixels; None uses that of the training.

    `UsageError` if there is no such run or file, or if it was trained on scenes.

    >>> detector = groupdetr.Detector("runs/mine")
    >>> for result in detector.predict(["a.jpg", "b.jpg"]):
    ...     result.save(f"{result.source}-annotated.jpg")
    """

    input_kind: ClassVar[str | None] = "images"

    task: type[DetectionTask]

    def create_task(self, data: DatasetSplits) -> DetectionTask:
        """Return the task of the detector on a dataset that its `read` returned."""
        return self.task(data, self.settings, self.recipe.num_detections)

    def predict(
        self, images: ImageInput | Sequence[ImageInput], score: float = DEFAULT_SCORE
    ) -> list[Result]:
        """Return the detections in each image whose score is at least ``score``.

        An image is a path, a PIL image of any mode, an array [H,W,3] or [H,W], or a tensor [3,H,W].
        All of them give the same detections. Arrays and tensors are in RGB, of bytes, of 16 bits,
        or of floats in [0,1]. With an opacity as the last channel, transparent pixels are white.

        `DataError` for a file that cannot be read, `UsageError` for what is not an image, and for a
        score that is not from 0 to 1.
        """
        return list(self.stream(images, score))

    @torch.inference_mode()
    def stream(
        self, images: ImageInput | Iterable[ImageInput], score: float = DEFAULT_SCORE
    ) -> Iterator[Result]:
        """Yield the same results as `predict`, image by image.

        Every image is a batch of its own, without padding.
        """
        expect_score(score)
        if is_one_image(images):
            images = [cast(ImageInput, images)]
        for source in cast(Iterable[ImageInput], images):
            image = to_rgb(source)
            pixels = to_pixels(image, val_transform(self.imgsz)).unsqueeze(0).to(self.device)
            no_padding = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
            batch = normalise(pixels, no_padding, padded=False)
            predictions = self.model(batch).final
            (detections,) = self.task.postprocess(
                predictions, [image.size], self.recipe.num_detections
            )
            # Users expect boxes inside of the image.
            width, height = image.size
            limit = torch.tensor([width, height, width, height])
            detections.boxes = detections.boxes.clamp(min=0).minimum(limit)
            path = os.fsdecode(source) if isinstance(source, str | os.PathLike) else ""
            yield Result(
                image=image,
                detections=detections.above(score),
                categories=self.categories,
                source=path,
                best_score=float(detections.scores[0]) if len(detections) else None,
            )


def predict(
    run: Path,
    inputs: Sequence[str],
    *,
    score: float | None,
    imgsz: int | None,
    split: str,
    limit: int | None,
    device: str,
    out: Path,
) -> list[JsonObject]:
    """Write annotated copies of images, and predictions.json, to the folder ``out``.

    Print one line for each image, and return the content of predictions.json. ``inputs`` are files,
    folders and globs. ``score`` is the score threshold; None: 0.5. ``split`` and ``limit`` are for
    scenes. Images that cannot be read are skipped; `DataError` at the end.
    """
    if not inputs:
        raise UsageError(
            "no images were given", remedy="groupdetr predict RUN photo.jpg folder/ '*.png'"
        )
    search = merge_searches(find_images(pattern) for pattern in inputs)
    paths = search.images
    if not paths:
        raise no_images(inputs[0], search)
    copies = annotated_paths(paths, out)
    expect_replaceable_copies(copies, out)
    console = create_console()
    if left_out := search.describe_left_out():
        console.print(left_out)
    min_score = DEFAULT_SCORE if score is None else score
    detector = Detector(run, device, imgsz)
    out.mkdir(parents=True, exist_ok=True)

    content: list[JsonObject] = []
    lines: list[str] = []
    best_scores: list[float] = []
    unreadable: list[DataError] = []
    images = list(zip(paths, copies))
    for path, copy in with_progress(images, "predict"):
        try:
            (result,) = detector.predict(path, min_score)
        except DataError as error:
            unreadable.append(error)
            continue
        result.save(copy)
        content.append(to_json(result, path, copy))
        lines.append(f"{escape_controls(str(path))}: {result.counts}")
        if result.best_score is not None:
            best_scores.append(result.best_score)
    write_json(out / "predictions.json", content)
    for line in lines:
        console.print(line)
    console.print(f"{len(content)} annotated images and predictions.json are in {out}")
    if hint := hint_at_lower_score(best_scores, min_score):
        console.print(hint)
    if unreadable:
        raise unreadable_inputs(unreadable, len(paths), "images")
    return content


def find_images(pattern: str) -> ImageSearch:
    """Return the images of a file, a folder (with its subfolders) or a glob, in a fixed order.

    In a folder, the ending of a name decides whether a file is an image. A file that was named, or
    that a glob matches, is taken with any ending.
    """
    path = Path(pattern)
    # The functions of os.path are False where those of Path raise, as for names that are too long.
    exists = os.path.exists(pattern)
    if os.path.isdir(pattern):
        search = search_folder(path)
    else:
        matches = [pattern] if exists else glob.glob(pattern, recursive=True)
        files = sorted(Path(match) for match in matches)
        search = named_files(file for file in files if exists or os.path.isfile(file))
    # Otherwise a folder that holds its own output would have more images every time.
    originals = [image for image in search.images if not is_annotated(image)]
    search.annotated_images = len(search.images) - len(originals)
    search.images = originals
    # Such files may be named because a shell expanded `folder/*`.
    named = os.path.isfile(pattern) and (search.system_files or search.annotated_images)
    if not search.images and not named:
        raise no_images(pattern, search)
    return search


def no_images(where: str, search: ImageSearch) -> UsageError:
    """Return the error for a search that found no image."""
    what, remedy = "no images were found", PASS_IMAGES
    if left_out := search.describe_left_out():
        what = f"{what} ({left_out})"
    elif not os.path.exists(where) and not glob.has_magic(where):
        described, remedy = describe_missing_image(where)
        what = described or "there is no such image or folder"
    return UsageError(what, where, remedy)


def annotated_paths(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the path of the annotated copy of each image, in the folder ``out``.

    Images with the same name in several folders get different paths. Copies are PNG files if the
    image is one, and otherwise JPEG files.
    """
    used_names: set[str] = set()
    annotated = []
    for path in paths:
        stem = os.fsdecode(os.fsencode(path.stem)[:_MAX_STEM])
        name = stem
        number = 1
        while _name_key(name) in used_names:
            number += 1
            name = f"{stem}-{number}"
        used_names.add(_name_key(name))
        suffix = ".png" if path.suffix.lower() == ".png" else ".jpg"
        annotated.append(out / f"{name}{suffix}")
    return annotated


def _name_key(name: str) -> str:
    """Return a text that is equal for names that are the same file on some systems."""
    return unicodedata.normalize("NFC", name).casefold()


def expect_replaceable_copies(copies: Sequence[Path], out: Path) -> None:
    """Raise `UsageError` if `predict` would replace a file that it did not write.

    That is so if the folder ``out`` is the folder of the images, for example.
    """
    remedy = f"choose another folder: --out {quote(out / 'annotated')}"
    expect_replaceable(copies, is_annotated, remedy)
    expect_replaceable([out / "predictions.json"], is_predictions, remedy)


def to_json(result: Result, path: Path, annotated: Path) -> JsonObject:
    """Return the entry of one image in predictions.json.

    Category ids are those of the dataset. Masks are COCO's compressed run lengths.
    """
    rows = zip(
        result.ids,
        result.names,
        result.scores.tolist(),
        result.boxes.tolist(),
        result.detections.segmentations(),
    )
    detections = []
    for category_id, name, score, box, segmentation in rows:
        detection = {
            "category_id": category_id,
            "name": name,
            "score": round(score, 6),
            "box": [round(coordinate, 3) for coordinate in box],
        }
        detections.append(detection | segmentation)
    return {
        "file": str(path),
        "width": result.image.width,
        "height": result.image.height,
        "annotated": annotated.name,
        "detections": detections,
    }
