"""The options of `groupdetr predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class PredictOptions(PluginOptions):
    """Detect objects in images, videos and cameras, or in scenes of several cameras.

    It writes annotated copies and predictions.json.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, a weights file of this library, an exported file (.onnx, .xml, .pt2), or a model on
    the Hugging Face hub (owner/name)."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """Files, folders (searched recursively), globs and addresses (https://...) of images and
    videos; a camera (0, or camera:NAME); - reads one path a line from stdin. For scenes: the folder
    of a nuScenes version, or nothing for the data of the run."""
    score: float | None = None
    """Score threshold. None: that of the best F1 of the run, as its training measured it; 0.5 for
    weights without a run, 0.3 for scenes."""
    classes: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]")] = None
    """Names of classes: only their detections are drawn and written. None: those of all
    classes."""
    imgsz: int | None = None
    """Shortest side of the network's input in pixels; for models of squares their side, for scenes
    the height. None: as in training."""
    split: str = "val"
    """For scenes: train or val, or another split of the version."""
    limit: int | None = None
    """The largest number of frames of each video and camera. For scenes: of samples, evenly spaced
    over the split. None: all."""
    batch: int = 1
    """Images or frames that are read at a time. Those of equal size run together, without
    padding."""
    workers: int | None = None
    """Threads that read images, and as many that draw and write, while the network computes. None:
    one for each spare processor core, 8 at most. The results do not depend on it."""
    precision: str = "fp32"
    """fp32, bf16, or auto: bf16 if it is clearly faster on this machine, which is measured first.
    In bf16, scores and boxes differ slightly."""
    save_txt: bool = False
    """Also write YOLO label files with scores: labels/NAME.txt; for a frame of a video
    labels/NAME/000007.txt."""
    save_json: bool = False
    """Also write the detections of all images as COCO results: coco_results.json."""
    save_crops: bool = False
    """Also write an image of each detection: crops/CLASS/NAME-1.jpg; for a frame of a video
    crops/CLASS/NAME/000007-1.jpg."""
    show_groups: bool = False
    """Run all groups of queries, and draw and write the box of each group for each detection."""
    uncertainty: bool = False
    """Run all groups of queries, and write how uncertain each detection is: 1 minus what the groups
    confirm of its score and its box."""
    vote: int | None = None
    """Fuse the boxes of this number of groups (weighted boxes fusion). It costs a decoder for each
    of them. None: one group answers."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: Path | None = None
    """Folder to write to. None: RUN/predict."""
    json: bool = False
    """Print the content of predictions.json (docs/json.md). The lines for each input go to
    stderr."""
