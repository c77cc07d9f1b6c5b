"""groupdetr check: what in a data set would break or mislead training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """List everything in a data set that would break or mislead training. Exit code 3 if training must not start."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder in a known COCO layout, an annotation file with --images, or a nuScenes version."""
    images: Path | None = None
    """Folder of the pictures, if DATA is an annotation file."""
    queries: int | None = None
    """Queries of a group, to compare the objects per image with."""
    decode: bool = True
    """Open and decode every picture. --no-decode reads headers only: quick, but broken pictures pass."""
    masks: bool = False
    """Look at segmentations too: every object has to have one, as for instance segmentation."""
    workers: int | None = None
    """Threads that decode. None: one for each processor core."""
    json: bool = False
    """Print one JSON object instead of text."""
    out: Path | None = None
    """Folder to write check.json to."""

    def run(self) -> int:
        from rich.console import Console

        from groupdetr.data.check import Report, check
        from groupdetr.data.nuscenes.version import check_version, is_version
        from groupdetr.engine.run_folder import write_json
        from groupdetr.errors import DataError

        if is_version(self.data):
            report: Report = check_version(self.data, self.decode)
        else:
            report = check(
                self.data, self.images, self.queries, self.decode, self.workers, self.masks
            )
        if self.out is not None:
            write_json(self.out / "check.json", report.to_json())
        if self.json:
            print(json.dumps(report.to_json(), indent=1, allow_nan=False))
        else:
            Console(highlight=False, soft_wrap=True).print(report.render(), markup=False)
        return DataError.exit_code if report.verdict == "refuse" else 0
