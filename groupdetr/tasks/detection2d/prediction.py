"""Prediction of objects in images: `Detector`, `Result` and the function of `groupdetr predict`."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from groupdetr.data.batch import normalise
from groupdetr.data.dataset import to_pixels
from groupdetr.data.image_decoding import IMAGE_SUFFIXES, load_image
from groupdetr.data.layouts import DatasetSplits
from groupdetr.data.transforms import val_transform
from groupdetr.engine.progress import with_progress
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import DataError, UsageError, unreadable_inputs
from groupdetr.structures.detections import Detections, decode_mask
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection_result import DetectionResult
from groupdetr.tasks.result_formats import format_counts
from groupdetr.tasks.trained_detector import TrainedDetector
from groupdetr.visualize.images import draw_detections

if TYPE_CHECKING:
    import supervision

ImageInput = str | Path | Image.Image | NDArray[np.generic] | Tensor

DEFAULT_SCORE = 0.5  # score threshold of `groupdetr predict`
SUFFIXES = (*IMAGE_SUFFIXES, ".ppm")  # files that predict reads from a folder


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

        An image is a path, a PIL image, an array [H,W,3] or [H,W] of bytes, or a tensor [3,H,W] of
        bytes or of floats in [0,1].
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
            images = [images]
        return list(self.stream(images, score))

    @torch.inference_mode()
    def stream(
        self, images: Sequence[ImageInput], score: float = DEFAULT_SCORE
    ) -> Iterator[Result]:
        """Yield the same results as `predict`, image by image.

        Every image is a batch of its own, without padding.
        """
        for source in images:
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
            path = str(source) if isinstance(source, str | Path) else ""
            yield Result(image, detections.above(score), self.categories, path)


def to_rgb(image: ImageInput) -> Image.Image:
    """Return any image as RGB, rotated according to its EXIF orientation."""
    if isinstance(image, str | Path):
        return load_image(Path(image))
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    array = _to_array(image) if isinstance(image, Tensor) else image
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UsageError(
            f"an array of {array.dtype} {array.shape} is not an image",
            remedy="pass [H,W,3] or [H,W] of uint8",
        )
    if array.shape[-1] == 1:
        array = array.squeeze(-1)
    return Image.fromarray(array).convert("RGB")


def _to_array(image: Tensor) -> NDArray[np.generic]:
    """Convert [3,H,W] to [H,W,3], and floats in [0,1] to bytes."""
    image = image.detach().cpu()
    if image.is_floating_point():
        image = (image * 255).round().clamp(0, 255).byte()
    if image.ndim == 3:
        image = image.permute(1, 2, 0)
    return image.numpy()


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
    paths: list[Path] = []
    for pattern in inputs:
        paths += find_images(pattern)
    min_score = DEFAULT_SCORE if score is None else score
    detector = Detector(run, device, imgsz)
    out.mkdir(parents=True, exist_ok=True)
    copies = annotated_paths(paths, out)

    content: list[JsonObject] = []
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
    write_json(out / "predictions.json", content)
    print_counts(content, out)
    if unreadable:
        raise unreadable_inputs(unreadable, len(paths), "images")
    return content


def find_images(pattern: str) -> list[Path]:
    """Return the images of a file, a folder (with its subfolders) or a glob, in a fixed order."""
    path = Path(pattern)
    if path.is_dir():
        candidates = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
        paths = sorted(file for file in candidates if file.is_file())
    elif path.exists():
        paths = [path]
    else:
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
        paths = sorted(match for match in matches if match.is_file())
    if not paths:
        raise UsageError("no images were found", pattern, "pass files, folders or globs of images")
    return paths


def annotated_paths(paths: Sequence[Path], out: Path) -> list[Path]:
    """Return the path of the annotated copy of each image, in the folder ``out``.

    Images with the same name in several folders get different paths. Copies are PNG files if the
    image is one, and otherwise JPEG files.
    """
    used_names: set[str] = set()
    annotated = []
    for path in paths:
        name = path.stem
        number = 1
        while name in used_names:
            number += 1
            name = f"{path.stem}-{number}"
        used_names.add(name)
        suffix = ".png" if path.suffix.lower() == ".png" else ".jpg"
        annotated.append(out / f"{name}{suffix}")
    return annotated


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


def print_counts(content: Sequence[JsonObject], out: Path) -> None:
    """Print one line for each image: how many objects of each class were detected."""
    for image in content:
        names = [detection["name"] for detection in image["detections"]]
        print(f"{image['file']}: {format_counts(names)}")
    print(f"{len(content)} annotated images and predictions.json are in {out}")
