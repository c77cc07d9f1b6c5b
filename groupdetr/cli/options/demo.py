"""groupdetr demo: the paper's effect, on this machine, in minutes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupdetr.errors import UsageError
from groupdetr.settings import expect_positive


@dataclass(frozen=True)
class Options:
    """Train the same small detector with one group and with K groups of queries on drawn pictures, and compare.

    Offline, on a CPU, in minutes. Writes report.html and metrics.json. If it was stopped, it goes on where it was.
    """

    figure: Literal[8] | None = None
    """Another figure of the paper on the same data: 8 compares denoising, groups, both and neither."""
    model: str | None = None
    """The detector; a -tiny preset learns in minutes. None: conditional-detr-tiny, or those of the figure."""
    groups: int | None = None
    """K of the runs with groups. None: the model's own."""
    epochs: float | None = None
    """Passes over the training pictures. None: as tuned for this."""
    seeds: int = 1
    """How many times to train each; more show how much is chance."""
    seed: int = 0
    """The first seed."""
    at_once: int | None = None
    """Trainings side by side, one processor thread each. None: 2 where there are two cores."""
    out: Path | None = None
    """Folder to write to. None: runs/demo, or runs/fig8 for that figure."""
    json: bool = False
    """Print metrics.json at the end."""

    @property
    def preset(self) -> str:
        return self.model or "conditional-detr-tiny"

    @property
    def folder(self) -> Path:
        return self.out or Path(f"runs/fig{self.figure}" if self.figure else "runs/demo")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def run(self) -> int:
        expect_positive(self, "epochs", "seeds", "at_once")
        if self.figure and self.model:
            raise UsageError(
                f"Fig. {self.figure} chooses its own detectors",
                remedy="leave out --model or --figure",
            )
        if self.figure:
            from groupdetr.workflows.fig8 import fig8 as compare
        else:
            from groupdetr.workflows.demo import demo as compare
        content = compare(self)
        if self.json:
            print(json.dumps(content, indent=1))
        return 0
