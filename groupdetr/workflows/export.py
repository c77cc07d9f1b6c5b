"""`groupdetr export`: a detector for another runtime, verified before the command ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast, overload

from groupdetr.checkpoints.reading import with_ending
from groupdetr.console.output import create_console
from groupdetr.console.text import quote
from groupdetr.deployment.comparison import (
    Comparison,
    comparison_on_images,
    comparison_on_scenes,
)
from groupdetr.deployment.exported_detector import ExportedDetector
from groupdetr.deployment.exported_scene_detector import ExportedSceneDetector
from groupdetr.deployment.graph import (
    DetectionGraph,
    GraphOptions,
    create_graph,
    expect_exportable,
    graph_of,
)
from groupdetr.deployment.runtimes import (
    FORMATS,
    OPSETS,
    ExportFormat,
    ExportOptions,
    weights_beside,
)
from groupdetr.deployment.verification import (
    TOLERANCE,
    TOLERANCE_HALF,
    Agreement,
    Tolerance,
    torch_runtime,
)
from groupdetr.errors import ExportMismatchError, UsageError
from groupdetr.files.replacing import expect_folder, expect_replaceable
from groupdetr.files.writing import explained
from groupdetr.settings import MANY, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection3d.prediction import SceneDetector
from groupdetr.tasks.detection3d.task import image_size
from groupdetr.tasks.run_or_weights import default_file
from groupdetr.tasks.trained_detector import task_of
from groupdetr.version import __version__
from groupdetr.weights.writing import WeightsFormat
from groupdetr.workflows.export_weights import (
    WEIGHTS_FORMATS,
    WeightsExportResult,
    export_weights,
)

RuntimeFormat = Literal["onnx", "openvino", "torch-export"]
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
        """Return the lines about the figures and the files."""
        lines = [*self.figures(), f"written to {self.file}"]
        for weights in _parts(self.file)[:-1]:
            if weights.exists():
                lines.append(f"its weights are in {weights.name}, which has to stay beside it")
        return lines

    def figures(self) -> list[str]:
        """Return the lines about the agreement and the speed."""
        agreement = self.agreement
        if agreement.box3d is not None:
            where = f"of boxes {agreement.box3d:.4f} (metres, radians, metres per second)"
        else:
            parts = []
            if agreement.pixels is not None:
                parts.append(f"of boxes {agreement.pixels:.2f} pixels")
            if agreement.mask is not None:
                parts.append(f"of masks {100 * agreement.mask:.2f} % of their pixels")
            where = " and ".join(parts)
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
        return lines


@overload
def export(
    run: str | Path,
    format: RuntimeFormat = "onnx",
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    size: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    half: bool = False,
    top: int | None = None,
    opset: int | None = None,
    check: str | Path | None = None,
) -> ExportResult: ...


@overload
def export(
    run: str | Path,
    format: WeightsFormat,
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    all_groups: bool = False,
) -> WeightsExportResult: ...


def export(
    run: str | Path,
    format: RuntimeFormat | WeightsFormat = "onnx",
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    size: tuple[int, int] | None = None,
    dynamic_batch: bool = False,
    half: bool = False,
    top: int | None = None,
    opset: int | None = None,
    check: str | Path | None = None,
    all_groups: bool = False,
) -> ExportResult | WeightsExportResult:
    """Write a detector for another runtime or for the code of others, verify it, and return that.

    The keywords are the options of `groupdetr export`: ``imgsz`` is the shortest side of the input
    in pixels, ``size`` a fixed height and width, ``top`` the number of detections, and ``check`` a
    dataset on whose val split both are evaluated. The formats "transformers" and "official" are the
    weights and their metadata, without a graph: a folder that transformers loads, and a file of the
    authors' layout, of which ``all_groups`` keeps all groups of queries.

    `UsageError` for a detector that cannot be exported. An `ExportMismatchError` is raised if the
    file does not agree with PyTorch. The file is kept.

    >>> groupdetr.export("runs/mine", "onnx").file
    """
    if format in WEIGHTS_FORMATS:
        of_runtimes = {
            "size": size,
            "dynamic_batch": dynamic_batch,
            "half": half,
            "top": top,
            "opset": opset,
            "check": check,
        }
        _expect_unused(format, of_runtimes)
        return export_weights(run, format, out, imgsz=imgsz, all_groups=all_groups)
    if format not in FORMATS:
        known = ", ".join([*FORMATS, *WEIGHTS_FORMATS])
        raise UsageError(f"there is no format {format!r}", remedy=f"choose {known}")
    _expect_unused(format, {"all_groups": all_groups})
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
        file = with_ending(default_file(Path(run), detector.path), runtime_format.ending)
    _expect_file(file, runtime_format.ending)
    check = Path(check) if check is not None else None
    comparison: Comparison[ExportedDetector] | Comparison[ExportedSceneDetector]
    if isinstance(detector, SceneDetector):
        # The cameras are calibrated for one size.
        size = size or image_size(detector.imgsz)
        comparison = comparison_on_scenes(detector, Path(run), check, size)
    else:
        size = _image_size(detector, size)
        comparison = comparison_on_images(detector, Path(run), check)
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
        "score_threshold": detector.best_threshold if isinstance(detector, Detector) else None,
        "imgsz": detector.imgsz,
        "divisor": detector.input_shape.divisor,
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
    agreement, figures = comparison.agreement(file, torch_runtime(in_torch), metadata, tolerance)
    result = ExportResult(file, agreement, figures, comparison.metric)
    _expect_agreement(result, tolerance)
    return result


def _expect_unused(format: str, options: Mapping[str, object]) -> None:
    """Raise `UsageError` if an option was given that has no effect on a format."""
    for name, value in options.items():
        if value is not None and value is not False:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} has no effect on the format {format}",
                remedy=f"leave out {flag}, or choose another --format",
            )


def export_command(
    *,
    run: Path,
    format: RuntimeFormat | WeightsFormat,
    imgsz: int | None,
    size: tuple[int, int] | None,
    dynamic_batch: bool,
    half: bool,
    top: int | None,
    opset: int | None,
    check: Path | None,
    all_groups: bool,
    out: Path | None,
) -> ExportResult | WeightsExportResult:
    """Export a detector. The arguments are the options of `groupdetr export`."""
    # `export` itself checks which keywords belong to which format.
    result: ExportResult | WeightsExportResult = cast(Any, export)(
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
        all_groups=all_groups,
    )
    return result


def _parts(file: Path) -> list[Path]:
    """Return the files that an export may consist of. The last one is ``file`` itself.

    OpenVINO writes the weights to a second file, and so does ONNX if they are too large for one.
    """
    if file.suffix == ".xml":
        return [file.with_suffix(".bin"), file]
    if file.suffix == ".onnx":
        return [weights_beside(file), file]
    return [file]


def _write(
    runtime_format: ExportFormat,
    graph: DetectionGraph,
    options: ExportOptions,
    metadata: JsonObject,
    file: Path,
) -> None:
    """Write the file in full, or leave what is there as it is. `WriteError` if it cannot be."""
    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        # A file of ONNX has the name of that of its weights in it, so the drafts already have their
        # final names, in a folder of their own.
        with TemporaryDirectory(prefix=f".{file.stem}.", dir=file.parent) as folder:
            runtime_format.write(graph, options, metadata, Path(folder) / file.name)
            for final in _parts(file):
                draft = Path(folder) / final.name
                if draft.exists():
                    draft.replace(final)
                else:
                    # The weights of a larger detector, whose file is replaced
                    final.unlink(missing_ok=True)


def _image_size(detector: Detector, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the height and width of the input; None for images of any size.

    A detector of squares has one size. `UsageError` for a size that the network cannot take.
    """
    shape = detector.input_shape
    if size is None:
        side = shape.round(detector.imgsz)
        return (side, side) if shape.square else None
    for pixels in size:
        if pixels % shape.divisor:
            lower = max(1, pixels // shape.divisor) * shape.divisor
            higher = lower + shape.divisor
            raise UsageError(
                f"a side of --size must be a multiple of {shape.divisor} for this detector, "
                f"not {pixels}",
                remedy=f"write {lower} or {higher} instead of {pixels}",
            )
    return size


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
    in_json, in_xml = b'"outputs": [', b"&quot;outputs&quot;"
    try:
        # A file may have gigabytes, which are not read into memory.
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as content:
            return content.find(in_json) >= 0 or content.find(in_xml) >= 0
    except (OSError, ValueError):  # it does not exist, or it is empty
        return False


def _expect_agreement(result: ExportResult, tolerance: Tolerance) -> None:
    """Raise `ExportMismatchError` if the differences are larger than those of rounding."""
    if result.agreement.is_within(tolerance):
        return
    raise ExportMismatchError(
        "the exported detector does not agree with PyTorch: " + "; ".join(result.figures()),
        str(result.file),
        f"scores may differ by {tolerance.score}, boxes by {tolerance.pixels} pixels, 3D boxes by "
        f"{tolerance.box3d}, and {100 * tolerance.mask:g} % of the pixels of masks; try another "
        "--format or --opset, or leave out --half",
    )
