"""The options of `groupdetr export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class ExportOptions(PluginOptions):
    """Write a detector for another runtime (torch.export, ONNX, OpenVINO), or for other code.

    One group of queries is kept. The file takes images with values from 0 to 255, and returns
    detections. It is opened by its runtime and compared with PyTorch before the command ends; the
    exit code is 5 if they do not agree.

    The format transformers is a folder that from_pretrained of transformers loads, and official a
    file of the authors' layout. What their code cannot compute is refused.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, a weights file of this library, or a model on the Hugging Face hub (owner/name)."""
    format: Literal["onnx", "openvino", "torch-export", "transformers", "official"] = "onnx"
    """The format: a file .onnx, .xml (with .bin) or .pt2; a folder of transformers; or a file .pth
    for the code of the detector's authors."""
    imgsz: int | None = None
    """Shortest side of the network's input in pixels, or the side of a square for models of
    squares. None: as in training."""
    size: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH")] = None
    """Height and width of the input, if it is to be fixed: images are stretched to it. None: any
    size, and images keep their proportions, as in training; for models of squares their side."""
    dynamic_batch: bool = False
    """Allow any number of images of one size; otherwise one."""
    half: bool = False
    """Store the weights in 16 bits, and compute in 16 bits except in OpenVINO."""
    top: int | None = None
    """Detections of an image. None: those of the model."""
    opset: int | None = None
    """Version of ONNX's operators, from 18 to 23. None: 20."""
    check: Path | None = None
    """A dataset on whose val split both runtimes are evaluated and compared."""
    all_groups: bool = False
    """With --format official: keep all groups of queries, one after the other, where the authors'
    layout can hold them. Otherwise the group that answers is kept."""
    out: Path | None = None
    """File or folder to write. None: beside the weights, such as RUN/weights/best.onnx."""
    json: bool = False
    """Print one JSON object (docs/json.md) instead of text."""
