"""groupdetr presets: the models and the paper's experiments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupdetr.experiments import Experiment


@dataclass(frozen=True)
class Options:
    """List every preset and every experiment of the paper: what `train --model` takes."""

    json: bool = False
    """Print one JSON object, with all hyperparameters."""

    def run(self) -> int:
        from rich.console import Console
        from rich.table import Table

        from groupdetr.experiments import EXPERIMENTS

        if self.json:
            print(
                json.dumps(
                    {name: described(experiment) for name, experiment in EXPERIMENTS.items()},
                    indent=1,
                )
            )
            return 0
        table = Table("model", "K", "N", "epochs", "in the paper", "", box=None, pad_edge=False)
        for name, experiment in EXPERIMENTS.items():
            groups = experiment.groups or experiment.recipe.num_groups
            reported = "" if experiment.reported is None else f"{experiment.reported:.1f}"
            epochs = f"{experiment.settings.epochs:g}"
            table.add_row(
                name,
                str(groups),
                str(experiment.recipe.num_queries),
                epochs,
                reported,
                experiment.about,
            )
        table.columns[0].min_width = max(map(len, EXPERIMENTS))  # names are there to be copied
        Console(soft_wrap=True).print(table)
        return 0


def described(experiment: Experiment) -> dict[str, Any]:
    """All hyperparameters, and what AP is of."""
    return asdict(experiment) | {"task": experiment.task.kind}
