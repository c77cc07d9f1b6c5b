"""Every preset and every row of the paper's tables, by name."""

from __future__ import annotations

from dataclasses import replace

from groupdetr.experiments.experiment import Experiment
from groupdetr.experiments.paper_rows import paper_rows
from groupdetr.experiments.presets import presets


def library_experiments() -> dict[str, Experiment]:
    """Return the experiments of this library. The recipe of each knows its name."""
    experiments = {}
    for part in (presets, paper_rows):
        for name, experiment in part():
            recipe = replace(experiment.recipe, preset=name)
            experiments[name] = replace(experiment, recipe=recipe)
    return experiments


# `groupdetr.registry.register_model` adds to it.
EXPERIMENTS: dict[str, Experiment] = library_experiments()
