"""The folder that a verb writes to."""

from __future__ import annotations

from pathlib import Path


def output_folder(out: Path | None, run: Path, name: str) -> Path:
    """Return --out, or by default the folder ``name`` of the run or beside the weights file.

    The folder is created.
    """
    parent = run if run.is_dir() else run.parent
    folder = out or parent / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
