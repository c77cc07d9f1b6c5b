"""The options of `groupdetr predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class PredictOptions(PluginOptions):
    """Detect objects in images, or in scenes of several cameras.

    It writes annotated copies and predictions.json.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, or a weights file of this library."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Files, folders (searched recursively) and globs. For scenes: the folder of a nuScenes
    version, or nothing for the data of the run."""
    score: float | None = None
    """Score threshold. None: 0.5, for scenes 0.3."""
    imgsz: int | None = None
    """Shortest side of the network's input in pixels; for scenes the height. None: as in training.
    """
    split: str = "val"
    """For scenes: train or val, or another split of the version."""
    limit: int | None = None
    """For scenes: the largest number of samples, evenly spaced over the split. None: all."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: Path | None = None
    """Folder to write to. None: RUN/predict."""
    json: bool = False
    """Print the content of predictions.json (docs/json.md). The lines for each image or scene go to
    stderr."""
