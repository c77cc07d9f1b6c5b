"""The options of `groupdetr groups`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class GroupsOptions(PluginOptions):
    """Compare the groups of queries of a run, from one forward pass with all of them.

    It writes a page with the AP of each group (Fig. 4 of the paper), a map of the queries by use,
    the agreement of the groups about each object, and their disagreement as uncertainty.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run; or a weights file of this library or a model on the Hugging Face hub (owner/name), for
    which --data is needed."""
    data: Path | None = None
    """The dataset, a folder or an annotation file. None: the one that the run was trained on."""
    images: Path | None = None
    """Folder of the images, if --data is an annotation file and they are not beside it."""
    cache: bool = True
    """Read what was read of a large COCO file before from huggingface-hub's cache folder, if the
    file has not changed. --no-cache reads the file."""
    split: str | None = None
    """train, val or test. None: val, or all images of an annotation file. Without a val split in
    the data of the run, val is what the training held out."""
    imgsz: int | None = None
    """Shortest side of the network's input in pixels, or the side of a square for models of
    squares. None: as in training."""
    best: bool = False
    """Also write RUN/weights/best-group.safetensors, in which the group with the highest AP
    answers. All commands take it in the place of the run."""
    batch: int = 8
    """Images of a batch. Padding changes the detections slightly; with 1 there is no padding."""
    workers: int | None = None
    """Processes that load images. None: one for each spare processor core, 8 at most."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: Path | None = None
    """Folder to write to. None: RUN/groups; for other data, another split or size, a folder beside
    it, such as RUN/groups-test."""
    json: bool = False
    """Print one JSON object, the content of groups.json (docs/json.md), instead of tables."""
