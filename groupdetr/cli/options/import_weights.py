"""The options of `groupdetr import`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ImportOptions:
    """Convert published weights to a file of this library.

    Read are official .pth and .pkl files, the authors' GroupDETR branch, Hugging Face and detrex,
    of Conditional DETR, DAB-DETR, DN-DETR, DAB-Deformable-DETR, DINO, Mask2Former, PETR and PETRv2.
    Nothing in the file is executed.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The checkpoint: a file, or a Hugging Face folder."""
    out: Path | None = None
    """The file to write. None: FILE with the ending .groupdetr.safetensors."""
    model: str | None = None
    """The preset that the weights belong to. None: as the checkpoint says."""
    groups: int | None = None
    """K of the new file; None: the checkpoint's."""
    queries: int | None = None
    """N of the new file; None: the checkpoint's."""
    file_groups: int | None = None
    """The number of groups in the checkpoint's query rows, if the checkpoint does not say it."""
    layout: str | None = None
    """The layout of the checkpoint, if its tensor names fit several and it does not say which."""
