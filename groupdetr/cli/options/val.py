"""The options of `groupdetr val`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class ValOptions(PluginOptions):
    """Evaluate a run: the twelve COCO metrics, or the nuScenes detection score, and every class.

    A file that groupdetr export wrote is evaluated in its runtime, on the CPU. The command writes
    the metrics and the detections.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run; or a weights file of this library, an exported file (.onnx, .xml, .pt2) or a model on
    the Hugging Face hub (owner/name), for which --data is needed."""
    data: Path | None = None
    """The dataset, a folder or an annotation file. None: the one that the run was trained on."""
    images: Path | None = None
    """Folder of the images, if --data is an annotation file and they are not beside it."""
    cache: bool = True
    """Read what was read of a large COCO file before from huggingface-hub's cache folder, if the
    file has not changed. --no-cache reads the file."""
    split: str | None = None
    """train, val or test; for scenes also another split of the version. None: val, or all images of
    an annotation file. Without a val split in the data of the run, val is what the training held
    out."""
    per_group: bool = False
    """Also evaluate every group of queries alone (Fig. 4 of the paper)."""
    vote: int | None = None
    """Evaluate the fused boxes of this number of groups (weighted boxes fusion). It costs a decoder
    for each of them. None: one group, as at inference."""
    imgsz: int | None = None
    """Shortest side of the network's input in pixels; for models of squares their side, for scenes
    the height. None: as in training."""
    batch: int = 8
    """Images of a batch. Padding changes the detections slightly; with 1 there is no padding.
    Exported files never have padding."""
    workers: int | None = None
    """Processes that load images. None: one for each spare processor core, 8 at most."""
    precision: str = "fp32"
    """fp32, bf16, or auto: bf16 if it is clearly faster on this machine, which is measured first.
    In bf16, scores and boxes differ slightly."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    out: Path | None = None
    """Folder to write to. None: RUN/val; for other data, another split or size, a folder beside it,
    such as RUN/val-test; for an exported file a folder beside it, such as val-DATA-onnx."""
    json: bool = False
    """Print one JSON object, the content of metrics.json (docs/json.md), instead of tables."""
