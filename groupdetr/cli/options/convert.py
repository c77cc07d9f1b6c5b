"""The options of `groupdetr convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class ConvertOptions(PluginOptions):
    """Write a dataset as COCO, YOLO or Pascal VOC.

    All that the format can hold is kept. What it cannot hold is listed at the end.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A dataset in any format that `groupdetr train` reads."""
    to: Literal["coco", "yolo", "voc"]
    """The format to write."""
    out: Path
    """Folder to write to. It must be new or empty."""
    images: Path | None = None
    """Folder of the images, if DATA is an annotation file and they are not beside it."""
    val_fraction: float | None = None
    """Fraction of the train images that become val, if there is no val split. None: no val split is
    made."""
    seed: int = 0
    """Seed that selects these images."""
    link: bool = False
    """Link the images, and do not copy them. Then a change of one changes the other."""
    json: bool = False
    """Print one JSON object (docs/json.md) instead of text."""
