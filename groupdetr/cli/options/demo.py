"""The options of `groupdetr demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class DemoOptions(PluginOptions):
    """Train the same small detector with one group and with K groups of queries, and compare.

    It uses synthetic images, works offline on a CPU, and takes minutes. It writes report.html and
    metrics.json. The same command continues an interrupted demo.
    """

    figure: Literal[8] | None = None
    """A figure of the paper, computed on the same data: 8 compares denoising, groups, both and
    neither."""
    model: str | None = None
    """The detector, a -tiny preset. None: conditional-detr-tiny, or the detectors of the figure."""
    groups: int | None = None
    """K of the trainings with groups. None: that of the preset."""
    epochs: float | None = None
    """Passes over the training images. None: the demo's own number."""
    seeds: int = 1
    """Number of seeds; several show the variance between trainings."""
    seed: int = 0
    """The first seed."""
    at_once: int | None = None
    """Trainings that run in parallel, one processor thread each. None: 2 if there are two cores."""
    out: Path | None = None
    """Folder to write to. None: runs/demo, or runs/fig8 for that figure."""
    json: bool = False
    """Print one JSON object at the end, the content of metrics.json (docs/json.md). Progress goes
    to stderr."""
