"""Probable errors in the annotations of a dataset: `groupdetr check DATA --with RUN`."""

from __future__ import annotations

from pathlib import Path

from groupdetr.console.text import file_name
from groupdetr.data.paths import dataset_name
from groupdetr.errors import UsageError
from groupdetr.files.replacing import expect_replaceable
from groupdetr.settings import RANGES, expect_whole_number
from groupdetr.tasks.detection2d import label_errors as label_errors2d
from groupdetr.tasks.detection2d.label_errors import JSON_FILE, PAGE_FILE, LabelErrors
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.output_files import (
    dataset_folders,
    expect_outside_dataset,
    has_json_keys,
)
from groupdetr.tasks.trained_detector import task_of
from groupdetr.workflows.output_folder import OTHER_FOLDER, output_folder
from groupdetr.workflows.own_dataset import is_training_data


def find_label_errors(
    run: str | Path,
    data: str | Path,
    *,
    images: str | Path | None = None,
    cache: bool = True,
    split: str | None = None,
    batch: int = 8,
    workers: int | None = None,
    device: str = "auto",
    out: str | Path | None = None,
) -> LabelErrors:
    """Return the probable errors in the annotations of a dataset, the most probable ones first.

    All groups of the ``run`` detect objects, and what they agree on is compared with the
    annotations of every split, or of one ``split``. The run may have been trained on the same
    dataset. label_errors.json and a page with the first suspects are written to the folder ``out``,
    which is ``label-errors-DATA`` in the run by default. ``images`` is the folder of images if
    ``data`` is an annotation file. With ``cache``, a large COCO file that was read before is read
    from the cache folder. ``batch`` images run at a time.

    A detector with one group is used as it is. `UsageError` for a detector of scenes or of other
    classes. `DataError` if the dataset cannot be used.

    >>> for suspect in groupdetr.find_label_errors("runs/mine", "data/mine").suspects[:10]:
    ...     print(suspect["kind"], suspect["file_name"], suspect["annotation_id"])
    """
    run, data = Path(run), Path(data)
    images = Path(images) if images is not None else None
    expect_whole_number("batch", batch, *RANGES["batch"])
    expect_whole_number("workers", workers, *RANGES["workers"])
    expect_detector_of_images(run)
    folder = output_folder(
        Path(out) if out is not None else None, run, file_name(f"label-errors-{dataset_name(data)}")
    )
    if not has_json_keys(folder / JSON_FILE, ("suspects", "weights")):
        expect_replaceable([folder / JSON_FILE, folder / PAGE_FILE], lambda _: False, OTHER_FOLDER)
    detector = Detector(run, device)
    dataset = detector.task.read(data, images, cache)
    expect_outside_dataset(folder, dataset_folders(dataset.metadata()))
    splits = dataset.splits
    if split is not None:
        if split not in splits:
            raise UsageError(
                f"there is no split {split!r}", str(data), f"choose from {', '.join(splits)}"
            )
        splits = {split: splits[split]}
    trained_on = ["train"] if is_training_data(run, data, images) else []
    return label_errors2d.find_label_errors(
        detector,
        splits,
        root=data,
        trained_on=trained_on,
        batch=batch,
        workers=workers,
        out=folder,
    )


def expect_detector_of_images(run: Path) -> None:
    """Raise `UsageError` unless a run or a weights file has a detector of images."""
    if task_of(run).input_kind != "images":
        raise UsageError(
            "label errors are found in images, and this detector takes scenes",
            str(run),
            "use a detector of images",
        )
