"""The plan of a detector's training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from groupdetr.data.records import TrainingData
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.tasks.training_config import TrainingConfig


@dataclass(frozen=True)
class DetectorPlan(TrainingPlan):
    """The plan of a detector's training."""

    config: TrainingConfig
    recipe: Recipe
    dataset: TrainingData
    resumes: bool  # True if the training continues from the last checkpoint of the run
    log: Callable[[str], None]  # prints a line in the main process
