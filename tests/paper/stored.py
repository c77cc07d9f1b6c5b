"""Trainings and runs that tests write without training anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import yaml

from groupdetr.paper.trainings import (
    Store,
    StoredTraining,
    Training,
    TrainingSet,
    absolute_if_file,
    assignments,
)
from groupdetr.registry import experiment
from groupdetr.settings import Settings
from groupdetr.tasks.registry import task_class
from groupdetr.tasks.training_config import TrainingConfig

MODEL = "conditional-detr-tiny"


def training(folder: Path, groups: int = 1, epochs: float = 8.0, seed: int = 0) -> Training:
    """Return a training on a dataset of 80 images in a folder, 8 of them in a step."""
    return Training(
        model=MODEL,
        groups=groups,
        queries=experiment(MODEL).recipe.num_queries,
        data=TrainingSet("photos", folder / "photos", num_train=80),
        settings=dataclasses.replace(experiment(MODEL).settings, epochs=epochs, seed=seed),
    )


def write_config(stored: StoredTraining, settings: Settings | None = None) -> None:
    """Write the config.yaml that the training would write."""
    item = stored.training
    config = TrainingConfig.from_model(item.data.folder, item.model, settings or item.settings)
    config = dataclasses.replace(
        config,
        groups=item.groups,
        queries=item.queries,
        set=tuple(assignments(item.fields)),
        weights=None if stored.parent is None else stored.parent.run.best,
        weights_of=item.parts,
        pretrained_backbone=absolute_if_file(item.pretrained_backbone),
        check=False,
    )
    recipe = dataclasses.replace(item.experiment.recipe, num_groups=item.groups)
    content = config.to_yaml(recipe, recipe, config.settings)
    stored.folder.mkdir(parents=True, exist_ok=True)
    stored.run.config.write_text(yaml.safe_dump(json.loads(json.dumps(content, default=str))))


def finish(
    item: Training, store: Store, cpu_seconds: float = 10.0, ap: float | None = 0.5
) -> StoredTraining:
    """Write the folder of a training that is done, and took so many CPU seconds.

    It was evaluated half way, and at its end.
    """
    stored = store.run(item)
    write_config(stored)
    steps = stored.steps
    assert steps is not None
    metrics = task_class(item.experiment.task).metrics
    for part in (0.5, 1.0):
        # The first step after an evaluation has the loss that its curve shows.
        step: dict[str, float | None] = {"step": max(1, round(part * steps)), "loss": 1 / part}
        # Wall time depends on other programs.
        step |= {"epoch": part * item.epochs, "seconds": 3 * part * cpu_seconds}
        step["cpu_seconds"] = part * cpu_seconds
        stored.run.append(step)
        value = None if ap is None else part * ap
        evaluation = {name: number for name, number in step.items() if name != "loss"}
        evaluation |= dict.fromkeys(metrics, value)
        stored.run.append(evaluation | {"peak_memory_mb": 100.0, "instability": 2 / part})
    stored.run.best.parent.mkdir()
    stored.run.best.write_bytes(b"weights")
    return stored


def fingerprint(images_digest: str) -> dict[str, object]:
    """Return the fingerprint of a dataset whose images have this digest."""
    digests = {"images_digest": images_digest, "objects_digest": "0"}
    return {
        "categories": [[1, "circle"]],
        "splits": {"train": {"images": 80, "objects": 200, **digests}},
    }
