"""The plan of a detector's training, and the configuration that a run records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from groupdetr.data.records import TrainingData
from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.settings import Settings
from groupdetr.structures.json_object import JsonObject


@dataclass(frozen=True)
class TrainingConfig:
    """The options of `groupdetr train` that config.yaml records."""

    data: Path
    images: Path | None
    model: str
    groups: int | Literal["auto"] | None
    queries: int | None
    set: tuple[str, ...]  # fields of the recipe, as name=value
    weights: Path | None
    pretrained_backbone: str
    check: bool
    settings: Settings

    def to_yaml(self, built: Recipe, planned: Recipe, settings: Settings) -> JsonObject:
        """Return the content of config.yaml, with paths that are valid from every folder.

        ``built`` is the recipe of the model after its weights were loaded. The weights may change
        fields of the ``planned`` recipe. A resumed run does not load them again, so these fields
        are recorded as if they had been set. ``settings`` are those that were fitted to the memory.
        """
        config = dataclasses.asdict(self)
        for name, value in config.items():
            if isinstance(value, Path):
                config[name] = str(value.resolve())
        config["settings"] = dataclasses.asdict(settings)
        config["groups"] = built.num_groups
        config["set"] = [*self.set, *changed_fields(built, planned)]
        return config


def changed_fields(built: Recipe, planned: Recipe) -> list[str]:
    """Return the fields, as name=value, in which the recipe of the model differs from the plan."""
    before = dataclasses.asdict(planned)
    after = dataclasses.asdict(built)
    names = after.keys() - {"num_classes", "pretrained_backbone"}
    return [f"{name}={after[name]}" for name in names if after[name] != before[name]]


@dataclass(frozen=True)
class DetectorPlan(TrainingPlan):
    """The plan of a detector's training."""

    config: TrainingConfig
    recipe: Recipe
    dataset: TrainingData
    resumes: bool  # True if the training continues from the last checkpoint of the run
    log: Callable[[str], None]  # prints a line in the main process
