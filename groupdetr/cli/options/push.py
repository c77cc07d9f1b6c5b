"""The options of `groupdetr push`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class PushOptions(PluginOptions):
    """Publish a detector on the Hugging Face hub: weights, configuration and model card.

    The card has the classes, the figures of the best evaluation and the settings of the training,
    and no paths of this machine. The login is that of huggingface-hub: hf auth login.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run, or a weights file of this library."""
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """The name on the hub. It is created if it does not exist."""
    private: bool = False
    """Let only the owner see the model."""
    out: Path | None = None
    """Write the files to this folder, and upload nothing."""
    license: str | None = None
    """License that the card states, such as apache-2.0. None: the card states none."""
    json: bool = False
    """Print one JSON object (docs/json.md) instead of text."""
