"""`groupdetr import`: convert published weights to a file of this library."""

from __future__ import annotations

from pathlib import Path

from groupdetr.checkpoints import hub
from groupdetr.checkpoints.reading import with_ending
from groupdetr.console.output import create_console
from groupdetr.console.text import quote
from groupdetr.errors import UsageError
from groupdetr.settings import MANY, expect_whole_number
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
    entry: str | None,
) -> Path:
    """Convert a published checkpoint and return the file that was written.

    The arguments are the options of `groupdetr import`.
    """
    if source.name in ("", ".."):
        raise UsageError(
            "the checkpoint has no name",
            str(source.resolve()),
            "name the file, or the folder by its own name",
        )
    expect_whole_number("groups", groups, 1, MANY)
    expect_whole_number("queries", queries, 1, MANY)
    expect_whole_number("file_groups", file_groups, 1, MANY)
    model_on_hub = hub.model_named(source)
    if out is None and model_on_hub is not None:
        out = Path(f"{model_on_hub.folder_name}.groupdetr.safetensors")
    out = out or with_ending(source, ".groupdetr.safetensors")
    options = {}
    if groups is not None:
        options["num_groups"] = groups
    if queries is not None:
        options["num_queries"] = queries
    report = import_weights(source, out, model, file_groups, layout, entry, **options)
    argument = workflows_for(task_of(out)).predict_argument
    next_command = f"groupdetr predict {quote(out)} {argument}"
    lines = [*report.lines, f"written to {out}; next: {next_command}"]
    create_console().print("\n".join(lines))
    return out
