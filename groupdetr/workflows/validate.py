"""`groupdetr val`: evaluate a trained detector."""

from __future__ import annotations

import json as json_format
from pathlib import Path

from groupdetr.settings import expect_positive
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.trained_detector import task_of
from groupdetr.workflows.output_folder import output_folder
from groupdetr.workflows.task_workflows import workflows_for


def validate(
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
    json: bool,
) -> JsonObject:
    """Evaluate a run or a weights file, write the metrics, and return the content of metrics.json.

    The arguments are the options of `groupdetr val`.
    """
    expect_positive(imgsz=imgsz, batch=batch)
    workflows = workflows_for(task_of(run))
    metrics = workflows.validate(
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
        json=json,
    )
    if json:
        print(json_format.dumps(metrics, indent=1))
    return metrics
