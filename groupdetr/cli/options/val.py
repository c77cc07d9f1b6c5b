"""groupdetr val: COCO AP of a run, per class and per group."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.settings import expect_positive


@dataclass(frozen=True)
class Options:
    """Evaluate a run: the twelve COCO figures, or the score of nuScenes, a table of classes, and the detections."""

    run_: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, or a weights file of this library (then --data is needed)."""
    data: Path | None = None
    """The data set; None: the run's own."""
    images: Path | None = None
    """Folder of the pictures, if --data is an annotation file."""
    split: str = "val"
    """train, val or test."""
    per_group: bool = False
    """Evaluate every group of queries by itself, too (Fig. 4 of the paper)."""
    imgsz: int | None = None
    """Shortest side the network sees; None: as trained."""
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

    @property
    def folder(self) -> Path:
        return self.out or (self.run_ if self.run_.is_dir() else self.run_.parent) / "val"

    def run(self) -> int:
        expect_positive(self, "imgsz", "batch")
        from groupdetr.tasks.detection2d.prediction import task_of
        from groupdetr.workflows.task_workflows import verbs_for

        verbs = verbs_for(task_of(self.run_))
        self.folder.mkdir(
            parents=True, exist_ok=True
        )  # now, not after an hour of evaluation, if it cannot be made
        content = verbs.validate(self)
        if self.json:
            print(json.dumps(content, indent=1))
        return 0
