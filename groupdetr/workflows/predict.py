"""`groupdetr predict`: detect objects and draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from groupdetr.errors import UsageError
from groupdetr.settings import MANY, RANGES, expect_in_range
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.trained_detector import task_of
from groupdetr.workflows.output_folder import output_folder
from groupdetr.workflows.task_workflows import workflows_for


def predict(
    *,
    run: Path,
    inputs: Sequence[str],
    score: float | None,
    imgsz: int | None,
    split: str,
    limit: int | None,
    device: str,
    out: Path | None,
) -> JsonObject | list[JsonObject]:
    """Write annotated images or scenes, and predictions.json, whose content is returned.

    The arguments are the options of `groupdetr predict`.
    """
    expect_in_range("imgsz", imgsz, *RANGES["imgsz"])
    expect_in_range("limit", limit, 1, MANY)
    if score is not None and not 0 <= score <= 1:
        raise UsageError(
            f"score must be between 0 and 1, not {score}", remedy="--score 0.5, for example"
        )
    task = task_of(run)
    if task.input_kind == "images" and (split != "val" or limit is not None):
        raise UsageError(
            "--split and --limit are for scenes, and this detector takes images",
            str(run),
            "leave them out, and name the images",
        )
    workflows = workflows_for(task)
    return workflows.predict(
        run,
        inputs,
        score=score,
        imgsz=imgsz,
        split=split,
        limit=limit,
        device=device,
        out=output_folder(out, run, "predict"),
    )
