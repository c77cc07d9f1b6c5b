"""`groupdetr export`: a detector for another runtime, verified before the command ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from groupdetr.console.output import create_console
from groupdetr.data.image_input import ImageInput
from groupdetr.data.records import CocoSplit
from groupdetr.data.synthetic import SyntheticConfig, generate_image
from groupdetr.engine.progress import with_progress
from groupdetr.engine.run_folder import training_data
from groupdetr.errors import DataError, GroupDETRError, UsageError
from groupdetr.evaluation.coco import evaluate
from groupdetr.export import verification
from groupdetr.export.exported_detector import ExportedDetector
from groupdetr.export.graph import GraphOptions, create_graph, graph_of
from groupdetr.export.runtimes import FORMATS, ExportOptions
from groupdetr.export.verification import Agreement, compare, torch_runtime
from groupdetr.files.replacing import expect_replaceable
from groupdetr.settings import MANY, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.validation import with_classes_of
from groupdetr.version import __version__

NUM_IMAGES = 8  # that both runtimes detect objects in, without --check


class ExportMismatchError(GroupDETRError):
    """An exported detector that does not agree with PyTorch."""

    exit_code = 5


@dataclass(frozen=True)
class ExportResult:
    """The file that was written, and how it agrees with PyTorch."""

    file: Path
    agreement: Agreement
    ap: tuple[float, float] | None  # of the exported detector and of PyTorch, with --check

    def to_json(self) -> JsonObject:
        """Return the file and all figures."""
        ap = None
        if self.ap is not None:
            ap = {"exported": self.ap[0], "torch": self.ap[1]}
        return {"file": str(self.file), "agreement": asdict(self.agreement), "AP": ap}

    def show(self) -> None:
        """Print the result."""
        console = create_console()
        for line in self.lines():
            console.print(line)

    def lines(self) -> list[str]:
        """Return the lines about the agreement and the speed."""
        agreement = self.agreement
        lines = [
            f"compared with PyTorch: {agreement.detections} detections in {agreement.images} images"
            f"; largest difference of scores {agreement.score:.1e}, of boxes "
            f"{agreement.pixels:.2f} pixels",
        ]
        if self.ap is not None:
            lines.append(f"AP {100 * self.ap[0]:.2f}, in PyTorch {100 * self.ap[1]:.2f}")
        lines.append(
            f"one image takes {agreement.milliseconds:.0f} ms, in PyTorch "
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
    expect_whole_number("opset", opset, 18, 100)
    for side in size or ():
        expect_whole_number("size", side, 32, 1 << 14)
    detector = Detector(run, "cpu", imgsz)
    graph = create_graph(detector, GraphOptions(top or detector.recipe.num_detections, half))
    runtime_format = FORMATS[format]
    file = Path(out) if out is not None else detector.path.with_suffix(runtime_format.ending)
    _expect_file(file, runtime_format.ending)
    images, split = _images(detector, Path(run), Path(check) if check is not None else None)

    metadata: JsonObject = {
        "version": __version__,
        "model": detector.recipe.preset,
        "task": detector.task.kind,
        "categories": [list(category) for category in detector.categories],
        "imgsz": detector.imgsz,
        "size": list(size) if size else None,
        "outputs": list(graph.outputs),
        "half": half,
    }
    short = round(detector.imgsz)
    options = ExportOptions(dynamic_batch, size, half, opset, (short, round(short * 4 / 3)))
    draft = file.with_name(f".{file.stem}.{os.getpid()}{runtime_format.ending}")
    file.parent.mkdir(parents=True, exist_ok=True)
    create_console().print(f"writing {file.name}: this takes a minute or more", highlight=False)
    try:
        runtime_format.write(graph, options, metadata, draft)
        _move(draft, file)
    finally:
        for part in _parts(draft):
            part.unlink(missing_ok=True)

    exported = ExportedDetector.load(file)
    in_torch = graph_of(detector, detector.model, replace(graph.options, half=False))
    reference = ExportedDetector(torch_runtime(in_torch), metadata)
    agreement = compare(exported, reference, images)
    ap = None
    if split is not None:
        ap = (_ap(detector, exported, split), _ap(detector, reference, split))
    result = ExportResult(file, agreement, ap)
    _expect_agreement(result, half)
    return result


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


def _parts(file: Path) -> list[Path]:
    """Return the files of an export: OpenVINO writes the weights to a second one."""
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def _move(draft: Path, file: Path) -> None:
    for part, final in zip(_parts(draft), _parts(file)):
        part.replace(final)


def _expect_file(file: Path, ending: str) -> None:
    """Raise `UsageError` for a file of another ending, or if a file of others would be replaced."""
    if file.suffix != ending:
        raise UsageError(
            f"a file of this format ends in {ending}", str(file), f"--out {file.stem}{ending}"
        )
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
        split = detector.task.read_split(check, None, None)
        return [record.path for record in split.records[:NUM_IMAGES]], split
    try:
        data, folder = training_data(run, "")
        records = detector.task.read(data, folder).splits["val"].records[:NUM_IMAGES]
    except (UsageError, DataError):  # a weights file, or data that are no longer there
        config = SyntheticConfig(image_size=256)
        return [generate_image(config, "val", index).image for index in range(NUM_IMAGES)], None
    return [record.path for record in records], None


def _ap(detector: Detector, exported: ExportedDetector, split: CocoSplit) -> float:
    """Return the AP of a detector on a split."""
    evaluated = with_classes_of(detector, split)
    detections = []
    for record in with_progress(evaluated.records, "evaluating"):
        detections.append(exported.predict(record.path))
    return evaluate(evaluated, detections, detector.task.kind).stats["AP"]


def _expect_agreement(result: ExportResult, half: bool) -> None:
    """Raise `ExportMismatchError` if the differences are larger than those of rounding."""
    max_score, max_pixels = verification.MAX_SCORE_DIFFERENCE, verification.MAX_PIXELS
    if half:
        max_score = verification.MAX_SCORE_DIFFERENCE_HALF
        max_pixels = verification.MAX_PIXELS_HALF
    if result.agreement.score > max_score or result.agreement.pixels > max_pixels:
        raise ExportMismatchError(
            "the exported detector does not agree with PyTorch: " + "; ".join(result.lines()),
            str(result.file),
            f"scores may differ by {max_score}, and boxes by {max_pixels} pixels; try another "
            "--format or --opset, or leave out --half",
        )
