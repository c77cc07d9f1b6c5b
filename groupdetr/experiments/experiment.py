"""An experiment: a detector, how it is trained, and for which task."""

from __future__ import annotations

from dataclasses import dataclass

from groupdetr.detectors.recipe import Recipe
from groupdetr.settings import Settings


@dataclass(frozen=True)
class Experiment:
    """A detector, how it is trained, and for which task."""

    recipe: Recipe
    settings: Settings
    about: str = ""  # a few words for `groupdetr presets`
    # The paper's AP on COCO, or NDS, in percent. None if it is not a row of a table.
    reported: float | None = None
    task: str = "detection"  # a name in `groupdetr.tasks.registry`


NamedExperiment = tuple[str, Experiment]
