"""What `groupdetr predict` does with images, videos and cameras."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import FrameType

from groupdetr.console.output import create_console
from groupdetr.console.progress import CountProgress, with_progress
from groupdetr.console.text import escape_controls, quantity, quote
from groupdetr.data.cameras import CAMERA_REMEDY
from groupdetr.data.video import is_annotated_video
from groupdetr.engine.accelerator import loader_workers
from groupdetr.engine.ordered_threads import map_in_order
from groupdetr.errors import DataError, UsageError, failed_inputs
from groupdetr.files.json_array import JsonArrayFile, json_item
from groupdetr.files.replacing import expect_replaceable
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.annotated_images import is_annotated
from groupdetr.tasks.detection2d.image_detector import (
    ImageDetector,
    PendingResult,
    ReadImage,
)
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.prediction_files import PredictionFiles
from groupdetr.tasks.detection2d.prediction_inputs import (
    PredictionInput,
    annotated_paths,
    find_inputs,
    no_images,
    with_paths_of_stdin,
)
from groupdetr.tasks.detection2d.result import Result
from groupdetr.tasks.detection2d.video_sources import AnnotatedVideo, VideoSource, open_source
from groupdetr.tasks.detection_result import hint_at_lower_score
from groupdetr.tasks.output_files import is_predictions
from groupdetr.tasks.result_formats import format_counts

PREDICTIONS = "predictions.json"


@dataclass(frozen=True)
class WrittenPredictions:
    """What a prediction wrote. Its content may be larger than the memory, so it stays on disk."""

    file: Path  # predictions.json

    def to_json(self) -> list[JsonObject]:
        """Return the content of predictions.json."""
        content: list[JsonObject] = json.loads(self.file.read_text(encoding="utf-8"))
        return content


def predict(
    run: Path,
    inputs: Sequence[str],
    *,
    score: float | None,
    classes: Sequence[str] | None,
    imgsz: int | None,
    split: str,
    limit: int | None,
    device: str,
    out: Path,
    batch: int,
    workers: int | None,
    precision: str,
    save_txt: bool,
    save_json: bool,
    save_crops: bool,
    show_groups: bool,
    uncertainty: bool,
    vote: int | None,
) -> WrittenPredictions:
    """Predict with a run or with weights, as `write_predictions` does.

    ``precision``, ``uncertainty`` and ``vote`` are those of `Detector`. ``split`` is for scenes.
    """

    def open_detector() -> Detector:
        detector = Detector(
            run, device, imgsz, uncertainty=uncertainty, vote=vote, precision=precision
        )
        if detector.precision_choice is not None:
            create_console().print(str(detector.precision_choice))
        return detector

    return write_predictions(
        open_detector,
        inputs,
        score=score,
        classes=classes,
        limit=limit,
        out=out,
        batch=batch,
        workers=workers,
        save_txt=save_txt,
        save_json=save_json,
        save_crops=save_crops,
        show_groups=show_groups,
    )


def write_predictions(
    open_detector: Callable[[], ImageDetector],
    inputs: Sequence[str],
    *,
    score: float | None,
    classes: Sequence[str] | None,
    limit: int | None,
    out: Path,
    batch: int,
    workers: int | None,
    save_txt: bool,
    save_json: bool,
    save_crops: bool,
    show_groups: bool = False,
) -> WrittenPredictions:
    """Write annotated copies of images and videos, and predictions.json, to the folder ``out``.

    Print one line for each image and each video, and return where the content of predictions.json
    is. The detector is opened when it is clear that the outputs can be written. ``inputs`` are
    files, folders, globs, addresses and cameras; ``-`` stands for those that stdin lists. ``score``
    is the score threshold; None: that of the detector. ``classes`` are the names of those that are
    detected; None: all. ``limit`` is the largest number of frames of each video and camera.
    ``batch`` images or frames are read at a time. ``workers`` threads read images, and as many draw
    and write; None: one for each spare processor core, 8 at most.
    `PredictionFiles` has the files of ``save_txt``, ``save_json`` and ``save_crops``. With
    ``show_groups``, the boxes of all groups are drawn and written. Inputs that cannot be read are
    skipped; `DataError` at the end.
    """
    if not inputs:
        raise UsageError(
            "no images were given", remedy="groupdetr predict RUN photo.jpg folder/ '*.png'"
        )
    patterns = with_paths_of_stdin(inputs)
    found, search = find_inputs(patterns)
    if not found:
        raise no_images(patterns[0], search)
    if limit is not None and all(item.kind == "image" for item in found):
        raise UsageError(
            "--limit is the number of frames of a video, and there are only images",
            found[0].argument,
            "leave it out, and name the images",
        )
    copies = annotated_paths(found, out)
    files = PredictionFiles(out, save_txt, save_json, save_crops)
    expect_replaceable_outputs(found, copies, files)
    console = create_console()
    if left_out := search.describe_left_out():
        console.print(left_out)
    detector = open_detector()
    min_score = detector.score if score is None else score
    detector.expect_options(min_score, batch, show_groups)
    labels = detector.labels_of(classes)
    if score is None and detector.best_threshold is not None:
        console.print(f"score threshold {min_score:.2g}, the one of best F1")
    out.mkdir(parents=True, exist_ok=True)

    content = JsonArrayFile(out / PREDICTIONS)
    threads = loader_workers(workers)
    prediction = _Prediction(
        detector, min_score, labels, batch, threads, show_groups, limit, files, content
    )
    try:
        done = prediction.run(list(zip(found, copies)))
        content.close()
        file_lines = files.finish()
    except BaseException:
        content.discard()
        files.discard()
        raise
    for line in prediction.lines:
        console.print(line)
    console.print(f"{prediction.describe_outputs()} and {PREDICTIONS} are in {out}")
    for line in file_lines:
        console.print(line)
    if hint := hint_at_lower_score(prediction.best_scores, min_score):
        console.print(hint)
    if not done:
        raise KeyboardInterrupt
    if prediction.failed:
        noun = "images" if all(item.kind == "image" for item in found) else "inputs"
        verb = "read" if prediction.copies_are_written else "read, or drawn and written"
        raise failed_inputs(prediction.failed, len(found), noun, verb)
    return WrittenPredictions(content.path)


# An input, and the path of its annotated copy
_Input = tuple[PredictionInput, Path]


@dataclass
class _Prediction:
    """A prediction that is under way: the options, and what there is so far."""

    detector: ImageDetector
    score: float
    labels: Sequence[int] | None  # of the classes that are detected; None: all
    batch: int
    threads: int  # that read images, and as many that draw and write them
    show_groups: bool
    limit: int | None
    files: PredictionFiles
    content: JsonArrayFile
    lines: list[str] = field(default_factory=list)
    best_scores: list[float] = field(default_factory=list)  # of each image and each video
    failed: list[DataError] = field(default_factory=list)  # of inputs that are left out
    copies_are_written: bool = True  # False if an image was read, and its copy was not written
    num_images: int = 0
    num_videos: int = 0

    def run(self, items: Sequence[_Input]) -> bool:
        """Predict in all inputs, each with its annotated copy.

        Returns False if the user stopped it before the end. A camera ends only if it is stopped.
        """
        done = 0
        for is_image, group in groupby(items, lambda item: item[0].kind == "image"):
            if is_image:
                of_group = list(group)
                self._predict_images(of_group)
                done += len(of_group)
                continue
            for item, copy in group:
                stopped = self._predict_video(item, copy)
                done += 1
                if stopped:
                    return item.kind == "camera" and done == len(items)
        return True

    def describe_outputs(self) -> str:
        """Return how many annotated images and videos there are."""
        parts = []
        if self.num_images or not self.num_videos:
            parts.append(quantity(self.num_images, "annotated image"))
        if self.num_videos:
            parts.append(quantity(self.num_videos, "annotated video"))
        return ", ".join(parts)

    def _predict_images(self, items: Sequence[_Input]) -> None:
        # Threads read the next images, and draw and write the last ones, while the network
        # computes. The network, and everything that depends on the order, stays in this thread.
        read = map_in_order(self._read, items, self.threads, ahead=self.batch)
        written = map_in_order(self._write_copy, self._predict_read(read), self.threads)
        with closing(written):
            for outcome in with_progress(written, "predict", len(items)):
                if isinstance(outcome, DataError):
                    self.failed.append(outcome)
                    continue
                result, copy, entry = outcome
                self.files.write(result, copy.stem, copy.suffix)
                self.content.append_text(entry)
                self.lines.append(f"{escape_controls(result.source)}: {result.counts}")
                if result.best_score is not None:
                    self.best_scores.append(result.best_score)
                self.num_images += 1

    def _read(self, item: _Input) -> tuple[ReadImage, Path] | DataError:
        """Read the image of an input. Return it with the path of its annotated copy."""
        source, copy = item
        try:
            return self.detector.read(source.argument), copy
        except DataError as error:
            return error

    def _predict_read(
        self, read: Iterator[tuple[ReadImage, Path] | DataError]
    ) -> Iterator[tuple[PendingResult, Path] | DataError]:
        """Run the network on every image that was read. Yield the errors of the others."""
        waiting: list[ReadImage] = []
        copies: list[Path] = []

        def predict_waiting() -> Iterator[tuple[PendingResult, Path]]:
            yield from zip(self.detector.run_network(waiting, self.show_groups), copies)
            waiting.clear()
            copies.clear()

        for outcome in read:
            if isinstance(outcome, DataError):
                yield outcome
                continue
            image, copy = outcome
            waiting.append(image)
            copies.append(copy)
            if len(waiting) == self.batch:
                yield from predict_waiting()
        yield from predict_waiting()

    def _write_copy(
        self, outcome: tuple[PendingResult, Path] | DataError
    ) -> tuple[Result, Path, str] | DataError:
        """Draw and write the annotated copy of an image. Add its entry in predictions.json."""
        if isinstance(outcome, DataError):
            return outcome
        pending, copy = outcome
        result = pending(self.score, self.labels)
        try:
            result.save(copy)
        except DataError as error:  # Its copy would have too many pixels for a JPEG file.
            self.copies_are_written = False
            return error
        return result, copy, json_item(to_json(result, result.source, copy))

    def _predict_video(self, item: PredictionInput, copy: Path) -> bool:
        """Predict in a video or camera. Returns True if the user stopped it."""
        try:
            with stop_on_interrupt() as stop, open_source(item.argument) as video:
                if video.is_camera:
                    console = create_console()
                    console.print(f"{escape_controls(video.name)}: Ctrl-C ends the recording")
                self._predict_frames(video, copy, stop)
                if video.reader.problem:
                    what = f"not all of this video could be read: {video.reader.problem}"
                    again = CAMERA_REMEDY if video.is_camera else "copy or download the video again"
                    remedy = f"the frames before that are done; {again}"
                    self.failed.append(DataError(what, video.name, remedy))
                return stop.is_set()
        except DataError as error:
            self.failed.append(error)
            return False

    def _predict_frames(self, video: VideoSource, copy: Path, stop: threading.Event) -> None:
        self.files.begin_video(copy.stem)
        classes: Counter[str] = Counter()  # the frames that each class was detected in
        num_frames, seconds, best_score = 0, 0.0, 0.0
        total = video.reader.num_frames
        if self.limit is not None:
            total = self.limit if total is None else min(total, self.limit)
        label = escape_controls(Path(video.name).name)
        frames = video.frames(self.limit, stop.is_set)
        with (
            AnnotatedVideo(copy, video.reader) as annotated,
            CountProgress(label, "frames") as progress,
        ):
            for result, frame in self.detector.predict_frames(
                frames, video.name, self.score, self.labels, self.batch, self.show_groups
            ):
                annotated.add(result.draw(), frame)
                self.files.write(result, f"{copy.stem}/{frame.index:06d}", ".jpg")
                self.content.append(to_json(result, video.name, copy))
                classes.update(set(result.names))
                best_score = max(best_score, result.best_score or 0.0)
                num_frames, seconds = frame.index + 1, frame.time
                progress(num_frames, total)
        if not num_frames:  # It was stopped before the first frame.
            return
        self.num_videos += 1
        self.best_scores.append(best_score)
        counts = format_counts([name for name, count in classes.items() for _ in range(count)])
        if classes:
            counts = f"frames with objects: {counts}"
        self.lines.append(
            f"{escape_controls(video.name)}: {quantity(num_frames, 'frame')} "
            f"(up to {seconds:.1f} s), {counts}"
        )


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, instead of ending the program at once. A second one does."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Only the main thread can handle signals.
        return
    former = signal.getsignal(signal.SIGINT)

    def request_stop(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, request_stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, former)


def expect_replaceable_outputs(
    inputs: Sequence[PredictionInput], copies: Sequence[Path], files: PredictionFiles
) -> None:
    """Raise `UsageError` if `predict` would replace a file that it did not write.

    That is so if the folder of the outputs is the folder of the images, for example.
    """
    out = files.out
    remedy = f"choose another folder: --out {quote(out / 'annotated')}"
    pairs = list(zip(inputs, copies))
    image_copies = [copy for item, copy in pairs if item.kind == "image"]
    video_copies = [copy for item, copy in pairs if item.kind != "image"]
    expect_replaceable(image_copies, is_annotated, remedy)
    expect_replaceable(video_copies, is_annotated_video, remedy)
    expect_replaceable([out / PREDICTIONS], is_predictions, remedy)
    paths = [Path(item.file_name) for item, _ in pairs if item.kind == "image"]
    files.prepare(paths, [copy.stem for copy in image_copies], remedy)
    files.prepare_videos([copy.stem for copy in video_copies], remedy)


def to_json(result: Result, file: str, annotated: Path) -> JsonObject:
    """Return the entry of one image, or of one frame of a video, in predictions.json.

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
        if result.group_uncertainty is not None:
            detection["uncertainty"] = round(float(result.group_uncertainty.total[index]), 6)
            disagreement = float(result.group_uncertainty.disagreement[index])
            detection["disagreement"] = round(disagreement, 6)
        detections.append(detection)
    entry: JsonObject = {"file": file}
    if result.frame is not None and result.time is not None:
        entry |= {"frame": result.frame, "time": round(result.time, 6)}
    return entry | {
        "width": result.image.width,
        "height": result.image.height,
        "annotated": annotated.name,
        "detections": detections,
    }
