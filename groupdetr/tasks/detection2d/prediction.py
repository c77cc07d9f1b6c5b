"""Prediction of objects in images: `Detector` and the function of `groupdetr predict`."""

from __future__ import annotations

import glob
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import torch
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
from groupdetr.engine.inference import use_group
from groupdetr.engine.progress import with_progress
from groupdetr.engine.run_folder import RunFolder, write_json
from groupdetr.errors import DataError, UsageError, unreadable_inputs
from groupdetr.files.replacing import expect_replaceable
from groupdetr.settings import RANGES, expect_whole_number, is_number
from groupdetr.structures.detections import Detections
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.annotated_images import is_annotated
from groupdetr.tasks.detection2d.group_detections import best_of_each_group
from groupdetr.tasks.detection2d.prediction_files import PredictionFiles
from groupdetr.tasks.detection2d.result import Result
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.tasks.detection_result import expect_score, hint_at_lower_score
from groupdetr.tasks.output_files import is_predictions
from groupdetr.tasks.trained_detector import TrainedDetector

if TYPE_CHECKING:
    pass

DEFAULT_SCORE = 0.5  # score threshold of weights without a recorded one
STDIN = "-"  # an input that stands for the paths that stdin lists
_MAX_STEM = 200  # bytes of the name of an annotated copy; file systems allow 255 with the ending


class Detector(TrainedDetector):
    """A trained detector of objects in images: a run, a weights file, or a model on the hub.

    A weights file is one of this library. A model on the Hugging Face hub is ``owner/name`` or
    ``owner/name@revision``, and may also have weights of transformers.

    ``device`` is auto, cpu, cuda or mps. ``imgsz`` is the shortest side of the network's input in
    pixels; None uses that of the training.

    `UsageError` if there is no such run or file, or if it was trained on scenes.

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
    ) -> None:
        super().__init__(source, device, imgsz)
        self.best_threshold = recorded_threshold(source)
        # The score threshold of `predict` without another one
        self.score = DEFAULT_SCORE if self.best_threshold is None else self.best_threshold

    def create_task(self, data: DatasetSplits) -> DetectionTask:
        """Return the task of the detector on a dataset that its `read` returned."""
        return self.task(data, self.settings, self.recipe.num_detections)

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        score: float | None = None,
        *,
        batch: int = 1,
        show_groups: bool = False,
    ) -> list[Result]:
        """Return the detections in each image whose score is at least ``score``.

        ``score`` None is the threshold with the best F1 that the training of a run measured, and
        0.5 for other weights.

        An image is a path, a PIL image of any mode, an array [H,W,3] or [H,W], or a tensor [3,H,W].
        All of them give the same detections. Arrays and tensors are in RGB, of bytes, of 16 bits,
        or of floats in [0,1]. With an opacity as the last channel, transparent pixels are white.

        ``batch`` images are read at a time, and those of equal size run together, without padding.
        With ``show_groups``, all groups of queries run, and `Result.groups` has their boxes.

        `DataError` for a file that cannot be read, `UsageError` for what is not an image, for a
        score that is not from 0 to 1, and for ``show_groups`` with a detector of one group.
        """
        return list(self.stream(images, score, batch=batch, show_groups=show_groups))

    def stream(
        self,
        images: ImageInput | Iterable[ImageInput],
        score: float | None = None,
        *,
        batch: int = 1,
        show_groups: bool = False,
    ) -> Iterator[Result]:
        """Yield the same results as `predict`, image by image."""
        score = self.score if score is None else score
        self.expect_options(score, batch, show_groups)
        if is_one_image(images):
            images = [cast(ImageInput, images)]
        read: list[tuple[Image.Image, str]] = []
        for source in cast(Iterable[ImageInput], images):
            path = os.fsdecode(source) if isinstance(source, str | os.PathLike) else ""
            read.append((to_rgb(source), path))
            if len(read) == batch:
                yield from self.predict_read(read, score, show_groups)
                read = []
        yield from self.predict_read(read, score, show_groups)

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
        self, images: Sequence[tuple[Image.Image, str]], score: float, show_groups: bool
    ) -> list[Result]:
        """Return the results of images that were read: RGB images, each with its path or "".

        The images whose inputs have equal sizes run together, without padding.
        """
        inputs = [to_pixels(image, val_transform(self.imgsz)) for image, _ in images]
        indices_by_size: dict[torch.Size, list[int]] = {}
        for index, pixels in enumerate(inputs):
            indices_by_size.setdefault(pixels.shape, []).append(index)
        results: dict[int, Result] = {}
        for indices in indices_by_size.values():
            pixels = torch.stack([inputs[index] for index in indices])
            sizes = [images[index][0].size for index in indices]
            # One list of detections for each group with show_groups, after that of the detector.
            detections, *groups = self._detect(pixels, sizes, show_groups)
            for position, index in enumerate(indices):
                image, path = images[index]
                all_detections = detections[position]
                chosen = all_detections.above(score)
                detections_of_groups = [of_group[position] for of_group in groups]
                results[index] = Result(
                    image=image,
                    detections=chosen,
                    categories=self.categories,
                    source=path,
                    best_score=float(all_detections.scores[0]) if len(all_detections) else None,
                    groups=best_of_each_group(chosen, detections_of_groups)
                    if show_groups
                    else None,
                )
        return [results[index] for index in range(len(images))]

    def _detect(
        self, pixels: torch.Tensor, sizes: Sequence[tuple[int, int]], show_groups: bool
    ) -> list[list[Detections]]:
        """Return the detections of each image of a batch [B,3,H,W], inside of the images.

        ``sizes`` are (width, height) of the original images. With ``show_groups``, the detections
        of every group alone follow.
        """
        pixels = pixels.to(self.device)
        no_padding = torch.zeros_like(pixels[:, 0], dtype=torch.bool)
        batch = normalise(pixels, no_padding, padded=False)
        predictions = [self.model(batch).final]
        if show_groups:
            with use_group(self.model, None):
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
    batch: int,
    save_txt: bool,
    save_json: bool,
    save_crops: bool,
    show_groups: bool,
) -> list[JsonObject]:
    """Write annotated copies of images, and predictions.json, to the folder ``out``.

    Print one line for each image, and return the content of predictions.json. ``inputs`` are files,
    folders and globs; ``-`` stands for those that stdin lists. ``score`` is the score threshold;
    None: that of the best F1 of the run, and 0.5 for other weights. ``split`` and ``limit`` are for
    scenes. ``batch`` images are read at a time. `PredictionFiles` has the files of ``save_txt``,
    ``save_json`` and ``save_crops``. With ``show_groups``, the boxes of all groups are drawn and
    written. Images that cannot be read are skipped; `DataError` at the end.
    """
    if not inputs:
        raise UsageError(
            "no images were given", remedy="groupdetr predict RUN photo.jpg folder/ '*.png'"
        )
    patterns = with_paths_of_stdin(inputs)
    search = merge_searches(find_images(pattern) for pattern in patterns)
    paths = search.images
    if not paths:
        raise no_images(patterns[0], search)
    copies = annotated_paths(paths, out)
    expect_replaceable_copies(copies, out)
    files = PredictionFiles(out, save_txt, save_json, save_crops)
    files.prepare(paths, copies, _another_folder(out))
    console = create_console()
    if left_out := search.describe_left_out():
        console.print(left_out)
    detector = Detector(run, device, imgsz)
    min_score = detector.score if score is None else score
    detector.expect_options(min_score, batch, show_groups)
    if score is None and detector.best_threshold is not None:
        console.print(f"score threshold {min_score:.2g}, the one of best F1")
    out.mkdir(parents=True, exist_ok=True)

    content: list[JsonObject] = []
    lines: list[str] = []
    best_scores: list[float] = []
    unreadable: list[DataError] = []
    waiting: list[tuple[Image.Image, Path, Path]] = []  # images that were read, path, copy

    def predict_waiting() -> None:
        images = [(image, str(path)) for image, path, _ in waiting]
        results = detector.predict_read(images, min_score, show_groups)
        for result, (_, path, copy) in zip(results, waiting):
            result.save(copy)
            files.write(result, copy)
            content.append(to_json(result, path, copy))
            lines.append(f"{escape_controls(str(path))}: {result.counts}")
            if result.best_score is not None:
                best_scores.append(result.best_score)
        waiting.clear()

    for path, copy in with_progress(list(zip(paths, copies)), "predict"):
        try:
            waiting.append((to_rgb(path), path, copy))
        except DataError as error:
            unreadable.append(error)
        if len(waiting) == batch:
            predict_waiting()
    predict_waiting()
    write_json(out / "predictions.json", content)
    file_lines = files.finish()
    for line in lines:
        console.print(line)
    console.print(f"{len(content)} annotated images and predictions.json are in {out}")
    for line in file_lines:
        console.print(line)
    if hint := hint_at_lower_score(best_scores, min_score):
        console.print(hint)
    if unreadable:
        raise unreadable_inputs(unreadable, len(paths), "images")
    return content


def recorded_threshold(source: str | Path) -> float | None:
    """Return the score threshold of the best F1 that the training of a run measured.

    None for a weights file, and for a run whose best weights detect no object.
    """
    run = Path(source)
    try:
        metrics = json.loads(RunFolder(run).best_metrics.read_text(encoding="utf-8"))
        threshold = metrics["score_threshold"]
    except (OSError, ValueError, LookupError, RecursionError, TypeError):
        return None
    return float(threshold) if is_number(threshold) and 0 <= threshold <= 1 else None


def with_paths_of_stdin(inputs: Sequence[str]) -> list[str]:
    """Return the inputs with ``-`` replaced by the lines of stdin, which are one path each.

    `UsageError` if stdin has no line.
    """
    if STDIN not in inputs:
        return list(inputs)
    stream = sys.stdin.buffer if sys.stdin is not None and not sys.stdin.closed else ()
    lines = [os.fsdecode(line.rstrip(b"\r\n")) for line in stream]
    listed = [line for line in lines if line.strip()]
    if not listed:
        raise UsageError(
            "stdin lists no images",
            remedy="pipe one path a line: ls *.jpg | groupdetr predict RUN -",
        )
    patterns: list[str] = []
    for pattern in inputs:
        if pattern == STDIN:
            patterns += listed
            listed = []  # stdin can be read once
        else:
            patterns.append(pattern)
    return patterns


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
    remedy = _another_folder(out)
    expect_replaceable(copies, is_annotated, remedy)
    expect_replaceable([out / "predictions.json"], is_predictions, remedy)


def _another_folder(out: Path) -> str:
    return f"choose another folder: --out {quote(out / 'annotated')}"


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
    for index, (category_id, name, score, box, segmentation) in enumerate(rows):
        detection: JsonObject = {
            "category_id": category_id,
            "name": name,
            "score": round(score, 6),
            "box": [round(coordinate, 3) for coordinate in box],
        }
        detection |= segmentation
        if result.groups is not None:
            detection["groups"] = result.groups.to_json(index)
        detections.append(detection)
    return {
        "file": str(path),
        "width": result.image.width,
        "height": result.image.height,
        "annotated": annotated.name,
        "detections": detections,
    }
