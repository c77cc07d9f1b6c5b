"""`groupdetr export`: a detector for another runtime, verified before the command ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from groupdetr.checkpoints import hub
from groupdetr.console.output import create_console
from groupdetr.console.text import quote
from groupdetr.data.image_input import ImageInput
from groupdetr.data.nuscenes import synthetic
from groupdetr.data.nuscenes.dataset import SceneBatch, SceneDataset
from groupdetr.data.records import CocoSplit
from groupdetr.data.synthetic import SyntheticConfig, generate_image
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector
from groupdetr.deployment.graph import (
    DetectionGraph,
    GraphOptions,
    create_graph,
    expect_exportable,
    graph_of,
)
from groupdetr.deployment.runtimes import FORMATS, OPSETS, ExportFormat, ExportOptions, Runtime
from groupdetr.deployment.verification import (
    TOLERANCE,
    TOLERANCE_HALF,
    Agreement,
    Tolerance,
    compare,
    compare_scenes,
    torch_runtime,
)
from groupdetr.engine.progress import with_progress
from groupdetr.engine.run_folder import training_data
from groupdetr.errors import DataError, ExportMismatchError, UsageError
from groupdetr.evaluation.coco import evaluate
from groupdetr.files.replacing import expect_folder, expect_replaceable
from groupdetr.files.writing import explained
from groupdetr.settings import MANY, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.validation import with_classes_of
from groupdetr.tasks.detection3d.prediction import SceneDetector, evenly_spaced_indices
from groupdetr.tasks.detection3d.task import Detection3DTask, image_size
from groupdetr.tasks.run_or_weights import default_folder
from groupdetr.tasks.trained_detector import task_of
from groupdetr.version import __version__

NUM_IMAGES = 8  # that both runtimes detect objects in, to compare them
NUM_SCENES = 3  # of six or twelve images each
# Shortest side in pixels of the images that a graph of any size is recorded with. The graph does
# not depend on it, and its levels have enough tokens for the 900 queries of the largest detector.
EXAMPLE_SIDE = 256


@dataclass(frozen=True)
class ExportResult:
    """The file that was written, and how it agrees with PyTorch.

    >>> result = groupdetr.export("runs/mine")
    >>> print(result.file, result.agreement.score)
    """

    file: Path
    agreement: Agreement  # with the largest difference of scores, and the times of one image
    # AP, or NDS of scenes, of the exported detector and of PyTorch, with ``check``
    ap: tuple[float, float] | None
    metric: str = "AP"

    def to_json(self) -> JsonObject:
        """Return the file and all figures."""
        ap = None
        if self.ap is not None:
            ap = {"exported": self.ap[0], "torch": self.ap[1]}
        figures = {"AP": None, "NDS": None, self.metric: ap}
        return {"file": str(self.file), "agreement": asdict(self.agreement), **figures}

    def show(self) -> None:
        """Print the result."""
        console = create_console()
        for line in self.lines():
            console.print(line)

    def lines(self) -> list[str]:
        """Return the lines about the agreement and the speed."""
        agreement = self.agreement
        if agreement.box3d is not None:
            where = f"of boxes {agreement.box3d:.4f} (metres, radians, metres per second)"
        elif agreement.mask is not None:
            where = f"of masks {100 * agreement.mask:.2f} % of their pixels"
        else:
            where = f"of boxes {agreement.pixels:.2f} pixels"
        inputs = "image" if agreement.box3d is None else "scene"
        lines = [
            f"compared {agreement.detections} detections in {agreement.images} {inputs}s: "
            f"largest difference of scores {agreement.score:.1e}, {where}",
        ]
        if agreement.unstable:
            lines.append(
                f"left out {agreement.unstable} of these images, in which rounding changes the "
                "detections of PyTorch, too: it decides between nearly equal proposals"
            )
        if self.ap is not None:
            exported, in_torch = self.ap
            lines.append(f"{self.metric} {100 * exported:.2f}, in PyTorch {100 * in_torch:.2f}")
        lines.append(
            f"one {inputs} takes {agreement.milliseconds:.0f} ms on this CPU, in PyTorch "
            f"{agreement.torch_milliseconds:.0f} ms"
        )
        lines.append(f"written to {self.file}")
        return lines


def export(
    run: str | Path,
    format: Literal["onnx", "openvino", "torch-export"] = "onnx",
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    size: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    half: bool = False,
    top: int | None = None,
    opset: int | None = None,
    check: str | Path | None = None,
) -> ExportResult:
    """Write a detector for another runtime, compare it with PyTorch, and return the result.

    The keywords are the options of `groupdetr export`: ``imgsz`` is the shortest side of the input
    in pixels, ``size`` a fixed height and width, ``top`` the number of detections, and ``check`` a
    dataset on whose val split both are evaluated.

    `UsageError` for a detector that cannot be exported. An `ExportMismatchError` is raised if the
    file does not agree with PyTorch. The file is kept.

    >>> groupdetr.export("runs/mine", "onnx").file
    """
    if format not in FORMATS:
        raise UsageError(f"there is no format {format!r}", remedy=f"choose {', '.join(FORMATS)}")
    expect_whole_number("top", top, 1, MANY)
    expect_whole_number("opset", opset, *OPSETS)
    _expect_size(size, imgsz)
    if format == "torch-export" and opset is not None:
        raise UsageError("only ONNX has versions of operators", remedy="leave out --opset")
    runtime_format = FORMATS[format]
    runtime_format.expect_installed()

    is_scene = task_of(run).input_kind == "scenes"
    detector: Detector | SceneDetector
    detector = SceneDetector(run, "cpu", imgsz) if is_scene else Detector(run, "cpu", imgsz)
    if out is not None:
        file = Path(out)
    else:
        file = _default_file(Path(run), detector.path).with_suffix(runtime_format.ending)
    _expect_file(file, runtime_format.ending)
    check = Path(check) if check is not None else None
    comparison: _OnImages | _OnScenes
    if isinstance(detector, SceneDetector):
        # The cameras are calibrated for one size.
        size = size or image_size(detector.imgsz)
        comparison = _OnScenes(detector, *_scenes(detector, Path(run), check, size))
    else:
        comparison = _OnImages(detector, *_images(detector, Path(run), check))
    # OpenVINO computes in 32 bits, and only its file has 16.
    compute_half = half and format != "openvino"
    num_detections = top or detector.recipe.num_detections
    graph = create_graph(detector, GraphOptions(num_detections, compute_half))
    expect_exportable(graph, dynamic_batch=dynamic_batch, fixed_size=size is not None)

    # Any size is allowed, and the graph is recorded with images of this one.
    example_size = (EXAMPLE_SIDE, round(EXAMPLE_SIDE * 4 / 3))
    options = ExportOptions(
        dynamic_batch, size, half, opset, example_size, comparison.views, comparison.two_frames
    )
    metadata: JsonObject = {
        "version": __version__,
        "model": detector.recipe.preset,
        "task": detector.task.kind,
        "categories": [list(category) for category in detector.categories],
        "imgsz": detector.imgsz,
        "size": list(size) if size else None,
        "dynamic_batch": dynamic_batch,
        "inputs": list(options.inputs),
        "outputs": list(graph.outputs),
        "half": half,
    }
    console = create_console()
    console.print(f"writing {file.name}: this takes a minute or more")
    _write(runtime_format, graph, options, metadata, file)

    console.print("comparing it with PyTorch")
    in_torch = graph_of(detector, detector.model, replace(graph.options, half=False))
    tolerance = TOLERANCE_HALF if half else TOLERANCE
    result = comparison.result(file, torch_runtime(in_torch), metadata, dynamic_batch, tolerance)
    _expect_agreement(result, tolerance)
    return result


@dataclass(frozen=True)
class _OnImages:
    """The comparison of two runtimes on images, and on a ``split`` if there is one."""

    detector: Detector
    images: Sequence[ImageInput]
    split: CocoSplit | None
    views = 0
    two_frames = False

    def result(
        self,
        file: Path,
        in_torch: Runtime,
        metadata: JsonObject,
        dynamic_batch: bool,
        tolerance: Tolerance,
    ) -> ExportResult:
        exported = ExportedDetector.load(file)
        reference = ExportedDetector(in_torch, metadata)
        agreement = compare(exported, reference, self.images, dynamic_batch, tolerance)
        ap = None
        if self.split is not None:
            ap = (self._ap(exported, self.split), self._ap(reference, self.split))
        return ExportResult(file, agreement, ap)

    def _ap(self, exported: ExportedDetector, split: CocoSplit) -> float:
        """Return the AP of a detector on a split."""
        detections = []
        for record in with_progress(split.records, "evaluating"):
            detections.append(exported.predict(record.path))
        return evaluate(split, detections, self.detector.task.kind).stats["AP"]


@dataclass(frozen=True)
class _OnScenes:
    """The comparison of two runtimes on scenes, and on the val split of a ``task``, if any."""

    detector: SceneDetector
    scenes: Sequence[SceneBatch]
    task: Detection3DTask | None

    @property
    def views(self) -> int:
        return self.scenes[0].pixels.shape[1]

    @property
    def two_frames(self) -> bool:
        return self.detector.task.two_frames

    def result(
        self,
        file: Path,
        in_torch: Runtime,
        metadata: JsonObject,
        dynamic_batch: bool,
        tolerance: Tolerance,
    ) -> ExportResult:
        exported = ExportedSceneDetector.load(file)
        reference = ExportedSceneDetector(in_torch, metadata)
        agreement = compare_scenes(exported, reference, self.scenes, dynamic_batch)
        nds = None
        if self.task is not None:
            nds = (self._nds(exported, self.task), self._nds(reference, self.task))
        return ExportResult(file, agreement, nds, "NDS")

    def _nds(self, exported: ExportedSceneDetector, task: Detection3DTask) -> float:
        """Return the NDS of a detector on the val split of a task."""
        height, width = exported.metadata["size"]
        samples = SceneDataset(
            task.val.samples, (height, width), two_frames=self.detector.task.two_frames
        )
        detections = []
        for index in with_progress(range(len(samples)), "evaluating"):
            detections.append(exported.predict(samples.collate([samples[index]])))
        return task.evaluate(detections).stats["NDS"]


def export_command(
    *,
    run: Path,
    format: Literal["onnx", "openvino", "torch-export"],
    imgsz: int | None,
    size: tuple[int, int] | None,
    dynamic_batch: bool,
    half: bool,
    top: int | None,
    opset: int | None,
    check: Path | None,
    out: Path | None,
) -> ExportResult:
    """Export a detector. The arguments are the options of `groupdetr export`."""
    return export(
        run,
        format,
        out,
        imgsz=imgsz,
        size=size,
        dynamic_batch=dynamic_batch,
        half=half,
        top=top,
        opset=opset,
        check=check,
    )


def _default_file(run: Path, weights: Path) -> Path:
    """Return the file beside the weights, or of a model on the hub, in a folder of its name."""
    if hub.model_named(run) is None:
        return weights
    return default_folder(run) / weights.name


def _parts(file: Path) -> list[Path]:
    """Return the files of an export: OpenVINO writes the weights to a second one."""
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def _write(
    runtime_format: ExportFormat,
    graph: DetectionGraph,
    options: ExportOptions,
    metadata: JsonObject,
    file: Path,
) -> None:
    """Write the file in full, or leave what is there as it is. `WriteError` if it cannot be."""
    # The runtimes tell formats by their endings, so that of the draft is the same.
    draft = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            runtime_format.write(graph, options, metadata, draft)
            for part, final in zip(_parts(draft), _parts(file)):
                part.replace(final)
        finally:
            for part in _parts(draft):
                part.unlink(missing_ok=True)


def _expect_size(size: tuple[int, int] | None, imgsz: int | None) -> None:
    """Raise `UsageError` unless a fixed size is possible."""
    if size is None:
        return
    if imgsz is not None:
        raise UsageError(
            "--imgsz and --size are two ways to choose the size of the input",
            remedy="leave out one of them",
        )
    if len(size) != 2:
        raise UsageError(f"--size needs a height and a width, not {size}")
    for side in size:
        expect_whole_number("size", side, 32, 1 << 14)


def _expect_file(file: Path, ending: str) -> None:
    """Raise `UsageError` for a file of another ending, or if a file of others would be replaced."""
    if file.suffix != ending:
        raise UsageError(
            f"a file of this format ends in {ending}",
            str(file),
            f"--out {quote(file.with_name(file.name + ending))}",
        )
    expect_folder(file.parent)
    remedy = "choose another file with --out"
    expect_replaceable(_parts(file), lambda part: _is_exported(file), remedy)


def _is_exported(file: Path) -> bool:
    """Return whether this library wrote a file: its metadata are in it as text."""
    try:
        return b'"outputs": [' in file.read_bytes() or b"&quot;outputs&quot;" in file.read_bytes()
    except OSError:
        return False


def _images(
    detector: Detector, run: Path, check: Path | None
) -> tuple[Sequence[ImageInput], CocoSplit | None]:
    """Return images to compare both runtimes on, and the split to evaluate them on, if any.

    Without ``check``, these are images that the run was validated on, or drawn ones.
    """
    if check is not None:
        split = with_classes_of(detector, detector.task.read_split(check, None, None))
        return [record.path for record in split.records[:NUM_IMAGES]], split
    try:
        data, folder = training_data(run, "")
        records = detector.task.read(data, folder).splits["val"].records[:NUM_IMAGES]
    except (UsageError, DataError):  # a weights file, or data that are no longer there
        config = SyntheticConfig(image_size=256)
        return [generate_image(config, "val", index).image for index in range(NUM_IMAGES)], None
    return [record.path for record in records], None


def _scenes(
    detector: SceneDetector, run: Path, check: Path | None, size: tuple[int, int]
) -> tuple[Sequence[SceneBatch], Detection3DTask | None]:
    """Return scenes to compare both runtimes on, and the task to evaluate them on, if any.

    Without ``check``, these are scenes that the run was validated on, or drawn ones.
    """
    if check is not None:
        task = detector.create_task(detector.task.read(check, None))
        return _first_scenes(detector, task.val, size), task
    try:
        data, _ = training_data(run, "")
        return _first_scenes(detector, detector.samples(data), size), None
    except (UsageError, DataError):  # a weights file, or data that are no longer there
        config = synthetic.SyntheticNuScenesConfig(samples=NUM_SCENES)
        with TemporaryDirectory() as folder:
            synthetic.write(config, folder)
            return _first_scenes(detector, detector.samples(folder), size), None


def _first_scenes(
    detector: SceneDetector, samples: SceneDataset, size: tuple[int, int]
) -> list[SceneBatch]:
    """Return some samples as scenes of this height and width."""
    resized = SceneDataset(samples.samples, size, two_frames=detector.task.two_frames)
    indices = evenly_spaced_indices(len(resized), NUM_SCENES)
    return [resized.collate([resized[index]]) for index in indices]


def _expect_agreement(result: ExportResult, tolerance: Tolerance) -> None:
    """Raise `ExportMismatchError` if the differences are larger than those of rounding."""
    if result.agreement.is_within(tolerance):
        return
    raise ExportMismatchError(
        "the exported detector does not agree with PyTorch: " + "; ".join(result.lines()[:-1]),
        str(result.file),
        f"scores may differ by {tolerance.score}, boxes by {tolerance.pixels} pixels, 3D boxes by "
        f"{tolerance.box3d}, and {100 * tolerance.mask:g} % of the pixels of masks; try another "
        "--format or --opset, or leave out --half",
    )
