"""The options of `groupdetr val`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ValOptions:
    """Evaluate a run: the twelve COCO figures, or the score of nuScenes, and a table of classes.

    It writes the figures and the detections.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, or a weights file of this library (then --data is needed)."""
    data: Path | None = None
    """The dataset; None: the run's own."""
    images: Path | None = None
    """Folder of the images, if --data is an annotation file."""
    split: str = "val"
    """train, val or test."""
    per_group: bool = False
    """Evaluate every group of queries by itself, too (Fig. 4 of the paper)."""
    imgsz: int | None = None
    """Shortest side that the network sees; None: as trained."""
    batch: int = 8
    """Images at once. Padding makes a small difference; 1 has none."""
    workers: int | None = None
    """Processes that load images."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: Path | None = None
    """Folder to write to. None: RUN/val."""
    json: bool = False
    """Print the figures as JSON."""
