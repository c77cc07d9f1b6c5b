"""The options of `groupdetr demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class DemoOptions(PluginOptions):
    """Train the same small detector with one group and with K groups of queries, and compare.

    With one group, it is also trained for the time that K groups take: Table 2 of the paper. The
    images are drawn, and it works offline on a CPU in about six minutes. It writes report.html,
    results.json and table.md. The same command continues an interrupted demo.
    """

    model: str | None = None
    """The detector, a -lite, -tiny or -micro preset. None: conditional-detr-lite."""
    groups: int | None = None
    """K of the trainings with groups. None: that of the preset."""
    epochs: float | None = None
    """Passes over the training images of one group and of K groups. None: the usual number."""
    seeds: int = 1
    """Number of seeds; several show the variance between trainings."""
    seed: int = 0
    """The first seed."""
    at_once: int | None = None
    """Trainings that run in parallel, one processor thread each. None: 2 if there are two cores."""
    out: Path | None = None
    """Folder to write to. None: runs/demo."""
    json: bool = False
    """Print one JSON object at the end, the content of results.json (docs/json.md). Progress goes
    to stderr."""
