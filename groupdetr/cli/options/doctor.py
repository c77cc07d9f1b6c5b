"""The options of `groupdetr doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.cli.options.plugin import PluginOptions


@dataclass(frozen=True)
class DoctorOptions(PluginOptions):
    """Show the environment, and test that the groups of a detector are separate.

    Perturbing one group changes no other, K groups in one pass equal K passes, and inference equals
    the primary group. The exit code is 1 if one of these does not hold.
    """

    model: str = "conditional-detr-tiny"
    """A preset, an experiment, or a run."""
    groups: int | None = None
    """K of the test, if the model is not a run. None: 3."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    json: bool = False
    """Print one JSON object (docs/json.md) instead of text."""
