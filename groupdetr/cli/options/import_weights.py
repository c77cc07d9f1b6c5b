"""The options of `groupdetr import`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class ImportOptions(PluginOptions):
    """Convert published weights to a file of this library.

    It reads official .pth, .ckpt and .pkl files, files of the authors' GroupDETR branch, of Hugging
    Face, of detrex, of Roboflow's rfdetr and of PaddleDetection (.pdparams), for Conditional DETR,
    DAB-DETR, DN-DETR, DAB-Deformable-DETR, DINO, LW-DETR, RF-DETR, RF-DETR-Seg, Mask2Former, PETR
    and PETRv2. Code in the file is not executed.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The checkpoint: a file, a folder of transformers, or a model on the Hugging Face hub:
    owner/name or owner/name@REVISION."""
    out: Path | None = None
    """The file to write. None: FILE with the ending .groupdetr.safetensors."""
    model: str | None = None
    """The preset that the weights belong to. None: the one that the checkpoint names."""
    groups: int | None = None
    """K of the new file; None: the checkpoint's."""
    queries: int | None = None
    """N of the new file; None: the checkpoint's."""
    file_groups: int | None = None
    """The number of groups in the checkpoint, if the checkpoint does not record it."""
    layout: str | None = None
    """The layout of the checkpoint, if its tensor names fit several layouts."""
    entry: str | None = None
    """The key of the weights in the checkpoint, if it has several: ema, model_ema, ema.module."""
