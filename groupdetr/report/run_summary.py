"""What every page of a run says of its training: the log in numbers, and what it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import environment
from groupdetr.engine.run_folder import RunFolder, is_evaluation
from groupdetr.evaluation import coco, nuscenes
from groupdetr.report.comparison import RunSummary

FIGURES = (*coco.FIGURES, *coco.BOX_FIGURES, *nuscenes.FIGURES)  # of any evaluation


def summary(run: RunFolder) -> RunSummary:
    """Of a run that has been evaluated: nan where a figure is undefined."""
    config, records = run.read_config(), run.records()
    curve = [
        {
            name: math.nan if value is None else value
            for name, value in row.items()
            if name != "losses"
        }
        for row in with_losses(records)
    ]
    last = curve[-1]
    figures = {name: last[name] for name in FIGURES if name in last}
    groups, seed = int(config["groups"]), int(config["settings"]["seed"])
    return RunSummary(
        groups,
        seed,
        round(last["epoch"], 2),
        last["seconds"],
        last["peak_memory_mb"],
        figures,
        curve,
    )


def with_losses(records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The evaluations, each with the mean loss and the rate of the steps logged since the one before."""
    steps: list[Mapping[str, Any]] = []
    for record in records:
        if not is_evaluation(record):
            steps.append(record)
            continue
        logged = (
            {"loss": sum(s["loss"] for s in steps) / len(steps), "lr": steps[-1]["lr"]}
            if steps
            else {}
        )
        yield {**record, **logged}
        steps = []


def about(config: Mapping[str, Any], recipe: Recipe) -> dict[str, object]:
    """How it was trained, and with what."""
    machine = environment()
    return {
        "groups": f"{recipe.num_groups} of {recipe.num_queries} queries",
        **config["settings"],
        "versions": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "command": machine["command"],
    }
