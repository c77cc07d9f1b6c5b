"""The options of `groupdetr presets`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PresetsOptions:
    """List every preset and every experiment of the paper: what `train --model` takes."""

    json: bool = False
    """Print one JSON object, with all hyperparameters."""
