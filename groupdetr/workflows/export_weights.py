"""`groupdetr export --format transformers` and `--format official`: the weights for other code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from groupdetr.checkpoints.reading import open_checkpoint, with_ending
from groupdetr.console.output import create_console
from groupdetr.console.text import quantity, quote
from groupdetr.data.batch import normalise
from groupdetr.data.dataset import to_pixels
from groupdetr.deployment.comparison import images_to_compare
from groupdetr.deployment.transformers_folder import (
    FILES,
    KEY,
    PROCESSORS,
    RF_DETR_PROCESSOR,
    Differences,
    compare_with_transformers,
    has_transformers,
    is_own_folder,
    write_folder,
    write_processor,
)
from groupdetr.errors import ExportMismatchError, UsageError, WeightsError
from groupdetr.files.replacing import expect_folder, expect_replaceable, same_file
from groupdetr.files.writing import write_atomically
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.run_or_weights import default_file
from groupdetr.tasks.trained_detector import TrainedDetector
from groupdetr.version import __version__
from groupdetr.weights.conversion import convert_checkpoint
from groupdetr.weights.huggingface_backbone import huggingface_backbone
from groupdetr.weights.huggingface_conditional_detr import own_entry
from groupdetr.weights.official_petr import OFFICIAL_PETR
from groupdetr.weights.writing import (
    Target,
    WeightsFormat,
    all_groups_state,
    describe,
    find_target,
    notes,
    notes_of_groups,
    one_group_state,
    their_state,
    unequal_tensors,
    with_unused_class,
)

WEIGHTS_FORMATS: tuple[WeightsFormat, ...] = ("transformers", "official")
TOLERANCE = 1e-5  # of logits, boxes, and logits of masks relative to the largest one
TOLERANCE_PIXELS = 1e-4  # of normalised pixels; a level of 255 is about 0.02
OWN_ENTRY = "groupdetr_version"  # of the metadata of a file of the authors' layout


@dataclass(frozen=True)
class WeightsExportResult:
    """The file or folder that was written, and how it agrees with this library.

    >>> result = groupdetr.export("runs/mine", "transformers")
    >>> print(result.file, result.differences)
    """

    file: Path  # of the authors' layout, or the folder of transformers
    layout: str  # whose layout it is
    tensors: int
    groups: int  # of queries
    # Between the answers of transformers and of this library; None if they were not compared
    differences: Differences | None
    notes: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """Return the file and all figures. Those of the comparison are null without one."""
        if self.differences is not None:
            differences = asdict(self.differences)
            if math.isnan(self.differences.pixels):
                differences["pixels"] = None
        else:
            differences = dict.fromkeys(field.name for field in fields(Differences))
        return {
            "file": str(self.file),
            "layout": self.layout,
            "tensors": self.tensors,
            "groups": self.groups,
            "differences": differences,
            "notes": list(self.notes),
        }

    def show(self) -> None:
        """Print the result."""
        console = create_console()
        for line in self.lines():
            console.print(line)

    def lines(self) -> list[str]:
        """Return the lines about what was written, and about the comparison."""
        groups = "one group" if self.groups == 1 else f"{self.groups} groups"
        lines = [
            f"wrote {self.tensors} tensors of {groups} as {self.layout}; read again, they are "
            "equal to those of the detector"
        ]
        if self.differences is not None:
            lines.append(_describe_differences(self.differences))
        return [*lines, *self.notes, f"written to {self.file}"]


def _describe_differences(differences: Differences) -> str:
    """Return the line about the comparison with transformers."""
    parts = [f"of logits {differences.logits:.1e}"]
    if differences.boxes is not None:
        parts.append(f"of boxes {differences.boxes:.1e}")
    if differences.mask_logits is not None:
        parts.append(f"of the logits of masks {differences.mask_logits:.1e}, relative")
    if not math.isnan(differences.pixels):  # otherwise, none could be compared
        parts.append(f"of pixels {differences.pixels:.1e}")
    line = (
        f"compared with transformers in {differences.images} images: largest difference "
        f"{', '.join(parts)}"
    )
    if differences.other_sizes:
        line += (
            f"; {differences.other_sizes} of these images have another size there, by one or a "
            "few pixels"
        )
    return line


def export_weights(
    run: str | Path,
    format: WeightsFormat,
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    all_groups: bool = False,
) -> WeightsExportResult:
    """Write the weights of a detector for the code of others, and return the result.

    ``format`` is "transformers", a folder that `from_pretrained` of transformers loads, or
    "official", a file of the authors' layout. It is read again, and transformers' answers are
    compared with ours if it is installed.

    `UsageError` if the code of others cannot compute what the detector computes.
    `ExportMismatchError` if the answers differ. The files are kept.
    """
    detector = TrainedDetector(run, "cpu", imgsz)
    where = str(detector.path)
    target = find_target(detector.recipe, format, where)
    if all_groups and format == "transformers" and not target.has_groups:
        raise UsageError(
            f"{target.title} has one group",
            where,
            "leave out --all-groups, or choose --format official",
        )
    file = Path(out) if out is not None else _default_path(Path(run), detector.path, format)
    if format == "transformers":
        detector_2d = Detector(run, "cpu", imgsz)
        return _write_transformers(detector_2d, Path(run), target, file, all_groups)
    return _write_official(detector, Path(run), target, file, all_groups)


def _default_path(run: Path, weights: Path, format: WeightsFormat) -> Path:
    """Return a path beside the weights, or of a model on the hub, in a folder of its name."""
    weights = default_file(run, weights)
    if format == "transformers":
        return with_ending(weights, "-transformers")
    return with_ending(weights, ".pth")


def _write_transformers(
    detector: Detector, run: Path, target: Target, folder: Path, all_groups: bool
) -> WeightsExportResult:
    """Write a folder of transformers, and compare it."""
    where = str(detector.path)
    backbone = huggingface_backbone(detector.model, where)
    expect_folder(folder)
    is_own = not same_file(run, folder) and is_own_folder(folder)
    files = [folder / name for name in FILES]
    expect_replaceable(files, lambda _: is_own, "choose another folder with --out")
    _expect_tokens(detector)

    num_groups = detector.recipe.num_groups if all_groups else 1
    if all_groups:
        state = all_groups_state(detector.model, target.layout, where)
    else:
        state = one_group_state(detector.model, target.layout)
    theirs = their_state(state, detector.model, target)
    description = describe(detector.recipe, num_groups, detector.categories, detector.imgsz)
    assert target.layout.describe is not None
    config = target.layout.describe(description) | backbone.config
    config[KEY]["version"] = __version__
    write_folder(folder, config, theirs)
    (architecture,) = config["architectures"]
    write_processor(folder, architecture, detector.resize, backbone.mean, backbone.std)
    _expect_equal(folder, state, detector, target)

    lines = notes(detector.recipe, target)
    if backbone.unused:
        lines.append(
            f"transformers says that {len(backbone.unused)} tensors of the backbone are newly "
            "initialised: they are of layers behind the last map that this detector uses"
        )
    differences = None
    if PROCESSORS[architecture] == RF_DETR_PROCESSOR:
        lines.append(
            f"the image processor of this folder, {RF_DETR_PROCESSOR}, resizes without "
            "antialiasing, unlike this library, so its scores differ a little"
        )
    if has_transformers():
        create_console().print("comparing it with transformers")
        images, _ = images_to_compare(detector, run, None)
        differences = compare_with_transformers(folder, detector, images, backbone.unused)
    else:
        lines.append(
            "the answers were not compared, because transformers is not installed: "
            "pip install 'groupdetr[huggingface]'"
        )
    result = WeightsExportResult(
        folder, target.title, len(theirs), num_groups, differences, tuple(lines)
    )
    if differences is not None:
        _expect_agreement(result, differences)
    return result


@torch.no_grad()
def _expect_tokens(detector: Detector) -> None:
    """Raise `UsageError` if images have fewer tokens than the detector has queries.

    Queries that start from proposals are then fewer here, and transformers fails.
    """
    square = Image.new("RGB", (detector.imgsz, detector.imgsz))
    pixels = to_pixels(square, detector.resize)[None]
    height, width = pixels.shape[-2:]
    images = normalise(pixels, torch.zeros(1, height, width, dtype=torch.bool), False)
    num_answers = detector.model.eval()(images).final.logits.shape[1]
    num_queries = detector.recipe.num_queries
    if num_answers >= num_queries:
        return
    enough = math.ceil(min(height, width) * math.sqrt(num_queries / num_answers))
    divisor = detector.recipe.size_divisor
    raise UsageError(
        f"images of {height} x {width} pixels have {quantity(num_answers, 'token')}, and "
        f"transformers cannot compute fewer than {num_queries} queries",
        str(detector.path),
        f"export it for larger images: --imgsz {math.ceil(enough / divisor) * divisor}",
    )


def _expect_agreement(result: WeightsExportResult, differences: Differences) -> None:
    """Raise `ExportMismatchError` if the answers differ by more than rounding."""
    answers = (differences.logits, differences.boxes or 0.0, differences.mask_logits or 0.0)
    # A nan, of pixels that could not be compared, is no difference.
    is_within = all(value < TOLERANCE for value in answers)
    if is_within and not differences.pixels > TOLERANCE_PIXELS:
        return
    raise ExportMismatchError(
        f"transformers does not agree with this library: {_describe_differences(differences)}",
        str(result.file),
        f"answers may differ by {TOLERANCE:g} and pixels by {TOLERANCE_PIXELS:g}; "
        + (" ".join(result.notes) or "report it with the versions that groupdetr doctor shows"),
    )


def _write_official(
    detector: TrainedDetector, run: Path, target: Target, file: Path, all_groups: bool
) -> WeightsExportResult:
    """Write a file of the authors' layout, and read it again."""
    expect_folder(file.parent)
    # The detector itself may be such a file, with groups that the new one does not have.
    is_own = not same_file(run, file) and _is_own_file(file)
    expect_replaceable([file], lambda _: is_own, "choose another file with --out")
    where = str(detector.path)
    num_groups = detector.recipe.num_groups if all_groups else 1
    if all_groups:
        state = all_groups_state(detector.model, target.layout, where)
    else:
        state = one_group_state(detector.model, target.layout)
    state = with_unused_class(state, detector.model, target.layout, detector.categories)
    theirs = their_state(state, detector.model, target)
    description = describe(detector.recipe, num_groups, detector.categories, detector.imgsz)
    assert target.layout.describe is not None
    metadata = {
        **target.layout.describe(description),
        **own_entry(description.fields),
        OWN_ENTRY: __version__,
    }
    content: dict[str, Any] = {"model": theirs, "args": metadata}
    if target.layout is OFFICIAL_PETR:
        content = {"state_dict": theirs, "meta": metadata}
    write_atomically(file, lambda opened: torch.save(content, opened))
    _expect_equal(file, state, detector, target)
    lines = notes_of_groups(detector.recipe, target, num_groups)
    return WeightsExportResult(file, target.title, len(theirs), num_groups, None, tuple(lines))


def _is_own_file(file: Path) -> bool:
    """Return whether this library wrote a file of the authors' layout: its metadata say so."""
    try:
        return file.is_file() and OWN_ENTRY in open_checkpoint(file).metadata
    except (WeightsError, OSError):
        return False


def _expect_equal(
    path: Path, state: Mapping[str, Tensor], detector: TrainedDetector, target: Target
) -> None:
    """Raise `ExportMismatchError` unless a file, read again, has the tensors of the detector."""
    layout, converted = convert_checkpoint(path, target.title)
    assert layout is target.layout
    unequal = unequal_tensors(state, detector.model, target, converted.state)
    if unequal:
        raise ExportMismatchError(
            f"read again, these tensors differ: {', '.join(unequal[:10])}",
            str(path),
            f"check the disk, and write it again: groupdetr export {quote(detector.path)}",
        )
