"""The options of `groupdetr compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class CompareOptions(PluginOptions):
    """Compare runs that exist: curves, gains, costs, and what each detects that the others miss.

    Runs that differ only in their seed are one configuration, with a mean and a deviation. It
    writes report.html, results.json and table.md.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folders of two runs or more, of one kind: boxes, masks or scenes."""
    cache: bool = True
    """Read what was read of a large COCO file before from huggingface-hub's cache folder, if the
    file has not changed. --no-cache reads the file."""
    device: str = "auto"
    """auto, cpu, cuda, mps: where the best weights of the runs detect objects for the page."""
    out: Path | None = None
    """Folder to write to. None: runs/compare."""
    json: bool = False
    """Print one JSON object at the end, the content of results.json (docs/json.md). Progress goes
    to stderr."""
