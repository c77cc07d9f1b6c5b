"""The folder that a command writes to."""

from __future__ import annotations

from pathlib import Path


def output_folder(out: Path | None, run: Path, name: str) -> Path:
    """Return the folder of --out. Without --out, return the folder ``name`` of the run.

    For a weights file, it is the folder ``name`` next to the file. The folder is created.
    """
    parent = run if run.is_dir() else run.parent
    folder = out or parent / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
