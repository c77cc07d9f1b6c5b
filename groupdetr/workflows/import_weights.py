"""`groupdetr import`: convert published weights to a file of this library."""

from __future__ import annotations

from pathlib import Path

from groupdetr.tasks.trained_detector import task_of
from groupdetr.weights.importing import import_weights
from groupdetr.workflows.task_workflows import workflows_for


def import_checkpoint(
    *,
    source: Path,
    out: Path | None,
    model: str | None,
    groups: int | None,
    queries: int | None,
    file_groups: int | None,
    layout: str | None,
) -> Path:
    """Convert a published checkpoint and return the file that was written.

    The arguments are the options of `groupdetr import`.
    """
    out = out or source.with_suffix(".groupdetr.safetensors")
    options = {}
    if groups is not None:
        options["num_groups"] = groups
    if queries is not None:
        options["num_queries"] = queries
    report = import_weights(source, out, model, file_groups, layout, **options)
    next_command = f"groupdetr predict {out} {workflows_for(task_of(out)).predict_argument}"
    print("\n".join([*report.lines, f"written to {out}; next: {next_command}"]))
    return out
