"""The options of `groupdetr ui`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class UIOptions(PluginOptions):
    """Serve a web page on this machine: detect objects in images, and see the errors of a run.

    It needs pip install 'groupdetr[ui]'. Only this machine can open the page. Ctrl-C ends it.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, a weights file of this library, an exported file (.onnx, .xml, .pt2), or a model on
    the Hugging Face hub (owner/name)."""
    data: Path | None = None
    """The dataset whose errors the page shows, a folder or an annotation file. None: the one that
    the run was trained on."""
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
    host: str = "127.0.0.1"
    """Address of this machine at which the page is served. With 0.0.0.0, everybody who can reach
    this machine can use the page, without a password."""
    port: int | None = None
    """None: 7860, or the next port that is free. 0: any free port."""
    open: bool = False
    """Open the page in the browser."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
