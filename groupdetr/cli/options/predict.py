"""groupdetr predict: annotated pictures or scenes, and what was found in them as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.errors import UsageError
from groupdetr.settings import expect_positive


@dataclass(frozen=True)
class Options:
    """Find objects in pictures, or in scenes of several cameras: writes annotated copies and predictions.json."""

    run_: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, or a weights file of this library."""
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Files, folders (searched through) and globs. Scenes: the folder of a nuScenes version; none: the run's own."""
    score: float | None = None
    """The least score to report. None: 0.5, of scenes 0.3."""
    imgsz: int | None = None
    """Shortest side the network sees; None: as trained."""
    split: str = "val"
    """Scenes: train or val, or another split that the version has a list of."""
    limit: int | None = None
    """Scenes: how many samples, evenly spread over the split. None: all."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: Path | None = None
    """Folder to write to. None: RUN/predict."""
    json: bool = False
    """Print the predictions as JSON instead of a line for each picture or scene."""

    @property
    def folder(self) -> Path:
        return self.out or (self.run_ if self.run_.is_dir() else self.run_.parent) / "predict"

    def run(self) -> int:
        expect_positive(self, "imgsz")
        if self.score is not None and not 0 <= self.score <= 1:
            raise UsageError(
                f"score must lie between 0 and 1, not {self.score}",
                remedy="--score 0.5, for example",
            )
        from groupdetr.tasks.detection2d.prediction import task_of
        from groupdetr.workflows.task_workflows import verbs_for

        verbs = verbs_for(task_of(self.run_))
        self.folder.mkdir(parents=True, exist_ok=True)
        verbs.predict(self)
        return 0
