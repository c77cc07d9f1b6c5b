"""`groupdetr check`: everything in a dataset that would break or mislead training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import nn

from groupdetr.console.output import create_console
from groupdetr.console.progress import CountProgress
from groupdetr.data.check import CheckReport
from groupdetr.data.check import check as check_coco
from groupdetr.data.layouts import DatasetSplits, load
from groupdetr.data.nuscenes.version import check_version, is_version, refuse_image_folder
from groupdetr.data.nuscenes.version import load as load_version
from groupdetr.data.records import TrainingData
from groupdetr.data.transforms import InputShape
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import DataError, UsageError
from groupdetr.files.replacing import expect_replaceable
from groupdetr.settings import MANY, RANGES, Settings, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.annotated_images import is_annotated, save_annotated
from groupdetr.tasks.detection2d.augmentation_sheet import augmentation_sheet
from groupdetr.tasks.detection2d.task import Augmentation
from groupdetr.tasks.output_files import dataset_folders, expect_outside_dataset
from groupdetr.workflows.output_folder import expect_check_file

# What runs a detector takes as long to import as the rest, and most checks run none.
if TYPE_CHECKING:
    from groupdetr.tasks.detection2d.label_errors import LabelErrors

SHEET = "augmentation.png"


@dataclass(frozen=True)
class CheckResult:
    """The result of `check`: the report, the probable label errors, and the exit code."""

    report: CheckReport
    label_errors: LabelErrors | None = None  # with a run that finds them

    @property
    def exit_code(self) -> int:
        """0, or that of a data error if training must not start."""
        return DataError.exit_code if self.report.verdict == "refuse" else 0

    def to_json(self) -> JsonObject:
        """Return the verdict, all findings and the statistics of the splits.

        With a run that finds probable label errors, they are there, too.
        """
        content = self.report.to_json()
        if self.label_errors is not None:
            content["label_errors"] = self.label_errors.to_json()
        return content

    def show(self) -> None:
        """Print the report, and the first probable label errors."""
        create_console().print(self.report.render())
        if self.label_errors is not None:
            self.label_errors.show()


def check(
    data: str | Path,
    images: str | Path | None = None,
    *,
    cache: bool = True,
    queries: int | None = None,
    decode: bool = True,
    masks: bool = False,
    workers: int | None = None,
) -> CheckReport:
    """Return the report on everything in a dataset that would break or mislead training.

    The keywords are the options of `groupdetr check`: ``queries`` of a group, for a warning of
    images with more objects; ``decode`` to open every image; ``masks`` to check segmentations;
    ``workers`` threads that decode. With ``cache``, a large annotation file and the images of a
    large dataset are not read again if they have not changed since they were read before.

    >>> groupdetr.check("data/mine").raise_for_errors()
    """
    expect_whole_number("queries", queries, 1, MANY)
    expect_whole_number("workers", workers, *RANGES["workers"])
    if workers == 0:
        raise UsageError("workers must be at least 1: they are threads that decode images")
    data = Path(data)
    if is_version(data):
        refuse_image_folder(images)
        return check_version(data, decode, num_queries=queries)
    images = Path(images) if images is not None else None
    with CountProgress("check") as progress:
        return check_coco(data, images, queries, decode, workers, masks, cache, progress)


def check_command(
    *,
    data: Path,
    images: Path | None,
    cache: bool,
    queries: int | None,
    decode: bool,
    masks: bool,
    workers: int | None,
    show_augment: int | None,
    augment: str,
    imgsz: int,
    square_images: bool,
    with_run: Path | None,
    split: str | None,
    device: str,
    out: Path | None,
) -> CheckResult:
    """Check a dataset. The arguments are the options of `groupdetr check`."""
    if show_augment is not None:
        expect_whole_number("show_augment", show_augment, 1, 100)
        Settings(augment=augment, imgsz=imgsz)  # These are refused before the check, which is long.
        if out is None:
            raise UsageError("--show-augment needs a folder to write to", remedy="add --out DIR")
        expect_replaceable([out / SHEET], is_annotated, "choose another folder with --out")
    if out is not None:
        expect_check_file(out / "check.json")
    if with_run is None and (split is not None or device != "auto"):
        raise UsageError(
            "--split and --device are for --with, which runs a detector",
            remedy="add --with RUN, or leave them out",
        )
    if with_run is not None:
        from groupdetr.workflows.label_errors import expect_detector_of_images

        expect_detector_of_images(with_run)  # before the check, which is long
    report = check(
        data,
        images,
        cache=cache,
        queries=queries,
        decode=decode,
        masks=masks,
        workers=workers,
    )
    if out is not None:
        if report.dataset is not None:
            expect_outside_dataset(out, dataset_folders(report.dataset.metadata()))
        write_json(out / "check.json", report.to_json())
    if show_augment is not None and out is not None:
        shape = InputShape(square=square_images)
        write_sheet(report, show_augment, augment, imgsz, shape, out / SHEET)
    if with_run is None:
        return CheckResult(report)
    # A dataset that cannot be trained on cannot be evaluated either: its errors come first.
    if report.verdict == "refuse":
        create_console().print("label errors are looked for when the errors below are corrected")
        return CheckResult(report)
    from groupdetr.workflows.label_errors import find_label_errors

    found = find_label_errors(
        with_run, data, images=images, cache=cache, split=split, device=device, out=out
    )
    return CheckResult(report, found)


def write_sheet(
    report: CheckReport, count: int, augment: str, imgsz: int, shape: InputShape, file: Path
) -> None:
    """Write a sheet of train images after augmentation, ``count`` rows, to a file.

    `UsageError` if the data are scenes, or if there are no images that can be drawn.
    """
    dataset = report.dataset
    if dataset is None or not hasattr(dataset, "splits"):
        raise UsageError(
            "there are no images to draw", str(report.root), "leave out --show-augment for scenes"
        )
    train = dataset.splits["train"]
    sheet = augmentation_sheet(train, Augmentation.named(augment), imgsz, count, shape=shape)
    save_annotated(sheet, file)
    create_console().print(f"training sees the images as in {file}")


def draw_augmentation(
    data: str | Path,
    images: str | Path | None = None,
    *,
    augment: str = "detr",
    transform: nn.Module | None = None,
    count: int = 8,
    imgsz: int = 320,
    square_images: bool = False,
) -> Image.Image:
    """Return a sheet of train images as training sees them, to be looked at before.

    It has a row for each of ``count`` images: the image as in validation, and three draws of the
    augmentation, with the boxes. ``augment`` and ``transform`` are those of `groupdetr.train`, and
    ``imgsz`` is the shortest side in pixels. With ``square_images``, images are resized to squares
    of this side, as LW-DETR and RF-DETR do. ``data`` and ``images`` are as in `load_dataset`.

    `UsageError` for scenes, and for values that cannot be used.

    >>> groupdetr.draw_augmentation("data/mine", augment="flip+mosaic", count=2).save("sheet.png")
    """
    expect_whole_number("count", count, 1, 100)
    Settings(augment=augment, imgsz=imgsz)  # `UsageError` for values that cannot be used
    own_transform = None
    if transform is not None:
        # Imported here, because it imports torchvision.
        from groupdetr.data.own_transform import OwnTransform

        own_transform = OwnTransform(transform)
    dataset = load_dataset(data, images)
    if not isinstance(dataset, DatasetSplits):
        raise UsageError(
            "there are no images to draw, because these are scenes",
            str(data),
            "pass a dataset of images",
        )
    chosen = Augmentation.named(augment)
    train = dataset.splits["train"]
    shape = InputShape(square=square_images)
    return augmentation_sheet(train, chosen, imgsz, count, own_transform=own_transform, shape=shape)


def load_dataset(path: str | Path, images: str | Path | None = None) -> TrainingData:
    """Return a dataset of images, or of scenes, as it is trained on, with segmentations if any.

    ``path`` is a folder in a known layout, an annotation file with the folder ``images``, or a
    nuScenes version. Images are not decoded. `DataError` for the first problem that would mislead
    training; `check` lists all of them.

    >>> dataset = groupdetr.load_dataset("data/mine")
    >>> len(dataset.splits["train"]), [category.name for category in dataset.categories]
    """
    path = Path(path)
    if is_version(path):
        refuse_image_folder(images)
        return load_version(path)
    return load(path, Path(images) if images is not None else None)
