"""`groupdetr val`: evaluate a trained detector."""

from __future__ import annotations

from pathlib import Path

from groupdetr.settings import expect_positive
from groupdetr.tasks.result_formats import Metrics
from groupdetr.tasks.trained_detector import task_of
from groupdetr.workflows.output_folder import output_folder
from groupdetr.workflows.task_workflows import workflows_for


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    images: str | Path | None = None,
    split: str = "val",
    per_group: bool = False,
    imgsz: int | None = None,
    batch: int = 8,
    workers: int | None = None,
    device: str = "auto",
    out: str | Path | None = None,
) -> Metrics:
    """Evaluate a run or a weights file, write the metrics, and return the content of metrics.json.

    The keywords are the options of `groupdetr val`. ``data`` is the dataset of the run by default,
    and ``out`` the folder ``val`` of the run. The result is a dictionary, of which a notebook shows
    tables.

    >>> groupdetr.evaluate("runs/mine", per_group=True)["AP"]
    """
    return validate_command(
        run=Path(run),
        data=Path(data) if data is not None else None,
        images=Path(images) if images is not None else None,
        split=split,
        per_group=per_group,
        imgsz=imgsz,
        batch=batch,
        workers=workers,
        device=device,
        out=Path(out) if out is not None else None,
    )


def validate_command(
    *,
    run: Path,
    data: Path | None,
    images: Path | None,
    split: str,
    per_group: bool,
    imgsz: int | None,
    batch: int,
    workers: int | None,
    device: str,
    out: Path | None,
) -> Metrics:
    """Evaluate, write the metrics, and return the content of metrics.json.

    The arguments are the options of `groupdetr val`.
    """
    expect_positive(imgsz=imgsz, batch=batch)
    workflows = workflows_for(task_of(run))
    return workflows.validate(
        run,
        data=data,
        images=images,
        split=split,
        per_group=per_group,
        imgsz=imgsz,
        batch=batch,
        workers=workers,
        device=device,
        # The folder is created before the evaluation, so an unwritable one is an error at once.
        out=output_folder(out, run, "val"),
    )
