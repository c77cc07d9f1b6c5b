"""The options of `groupdetr presets`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class PresetsOptions(PluginOptions):
    """List every preset and every experiment of the paper: what `train --model` takes."""

    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")] = "*"
    """List only the names that match it; * stands for any text: '*tiny', 'table3/*'."""
    json: bool = False
    """Print one JSON object, with all hyperparameters (docs/json.md)."""
