"""`groupdetr presets`: list the models and the paper's experiments."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from groupdetr.experiments import EXPERIMENTS, Experiment
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.registry import task_class


def presets(*, json: bool) -> None:
    """Print every preset and every experiment of the paper."""
    if json:
        described = {name: describe(experiment) for name, experiment in EXPERIMENTS.items()}
        print(json_format.dumps(described, indent=1))
        return
    table = Table("model", "K", "N", "epochs", "in the paper", "", box=None, pad_edge=False)
    for name, experiment in EXPERIMENTS.items():
        groups = experiment.groups or experiment.recipe.num_groups
        reported = "" if experiment.reported is None else f"{experiment.reported:.1f}"
        table.add_row(
            name,
            str(groups),
            str(experiment.recipe.num_queries),
            f"{experiment.settings.epochs:g}",
            reported,
            experiment.about,
        )
    # Users copy the names from this table, so they must not be cut.
    table.columns[0].min_width = max(map(len, EXPERIMENTS))
    Console(soft_wrap=True).print(table)


def describe(experiment: Experiment) -> JsonObject:
    """Return all hyperparameters, and what the metrics measure: box, mask or box3d."""
    return asdict(experiment) | {"task": task_class(experiment.task).kind}
