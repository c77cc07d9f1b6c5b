"""The options of `groupdetr check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class CheckOptions(PluginOptions):
    """List everything in a dataset that would break or mislead training.

    The exit code is 3 if training must not start.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A dataset of COCO, YOLO, Pascal VOC or Hugging Face, or a nuScenes version."""
    images: Path | None = None
    """Folder of the images, if DATA is an annotation file and they are not beside it."""
    cache: bool = True
    """Take what was read of a large COCO file and of the images of a large dataset before from
    huggingface-hub's cache folder, if they have not changed. --no-cache reads them."""
    queries: int | None = None
    """Queries of a group; the check warns of images with more objects."""
    decode: bool = True
    """Decode every image. --no-decode reads only the headers: it is quick, but does not find broken
    images."""
    masks: bool = False
    """Check segmentations as well: instance segmentation needs one for every object."""
    workers: int | None = None
    """Threads that decode images. None: one for each processor core."""
    show_augment: int | None = None
    """Draw this number of train images as training sees them, to OUT/augmentation.png."""
    augment: str = "detr"
    """The augmentation that --show-augment draws, such as flip or detr+mosaic+photometric."""
    imgsz: int = 320
    """Shortest side of an image in pixels, or the side of a square, for --show-augment."""
    square_images: bool = False
    """Resize to squares, as LW-DETR and RF-DETR do, for --show-augment."""
    with_run: Annotated[Path | None, tyro.conf.arg(name="with", metavar="RUN")] = None
    """Also list probable label errors: what all groups of this run detect is compared with the
    annotations. RUN may have been trained on the same dataset."""
    split: str | None = None
    """The split in which --with looks for label errors. None: all splits."""
    device: str = "auto"
    """Where --with runs the detector: auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object (docs/json.md) instead of text."""
    out: Path | None = None
    """Folder to write check.json and augmentation.png to, and label_errors.html and
    label_errors.json with --with, which are in RUN/label-errors-DATA without it."""
