"""The log and the configuration of a run, as the pages of all tasks show them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from groupdetr.detectors.recipe import Recipe
from groupdetr.engine.accelerator import environment
from groupdetr.engine.run_folder import RunFolder, is_evaluation
from groupdetr.evaluation import coco, nuscenes
from groupdetr.report.comparison import RunSummary
from groupdetr.structures.json_object import JsonObject

# The metrics of all kinds of evaluation.
METRICS = (*coco.METRICS, *coco.BOX_METRICS, *nuscenes.METRICS)


def summarize_run(run: RunFolder) -> RunSummary:
    """Return the numbers of a run that has been evaluated at least once.

    Metrics that are undefined are nan.
    """
    config = run.read_config()
    curve = []
    for row in evaluations_with_losses(run.records()):
        numbers = {}
        for name, value in row.items():
            if name != "losses":
                numbers[name] = math.nan if value is None else value
        curve.append(numbers)
    last = curve[-1]
    return RunSummary(
        groups=int(config["groups"]),
        seed=int(config["settings"]["seed"]),
        epochs=round(last["epoch"], 2),
        seconds=last["seconds"],
        # Runs of earlier versions did not record it, and on a GPU it is not what a step costs.
        cpu_seconds=(last.get("cpu_seconds") or math.nan) if trained_on_cpu(run) else math.nan,
        # A run that was resumed has a peak for each of its processes.
        peak_memory_mb=max(evaluation["peak_memory_mb"] for evaluation in curve),
        metrics={name: last[name] for name in METRICS if name in last},
        curve=curve,
        steps=int(last["step"]),
        name=run.path.name,
    )


def trained_on_cpu(run: RunFolder) -> bool:
    """True if a run was trained on a CPU, by its environment.

    Runs of earlier versions did not record their device. They count as trained on a CPU by their
    settings, or if their machine had no GPU of NVIDIA.
    """
    try:
        environment = json.loads(run.environment.read_text(encoding="utf-8"))
        device, gpus = environment.get("device"), environment["gpus"]
    except (OSError, ValueError, LookupError, AttributeError):
        device, gpus = None, []
    if device is not None:
        return bool(device == "cpu")
    return run.read_config()["settings"].get("device") == "cpu" or not gpus


def evaluations_with_losses(records: Sequence[JsonObject]) -> Iterator[JsonObject]:
    """Yield the evaluations of a log.

    Each has the mean loss and the last learning rate of the steps logged since the evaluation
    before it, if there are any.
    """
    steps: list[JsonObject] = []
    for record in records:
        if not is_evaluation(record):
            steps.append(record)
            continue
        row = dict(record)
        if steps:
            row["loss"] = sum(step["loss"] for step in steps) / len(steps)
            if "lr" in steps[-1]:
                row["lr"] = steps[-1]["lr"]
        yield row
        steps = []


def run_details(config: JsonObject, recipe: Recipe) -> dict[str, object]:
    """Return the groups, settings, versions of packages and command of a run."""
    system = environment()
    details: dict[str, object] = {
        "groups": f"{config['groups']} of {recipe.num_queries} queries",
    }
    details.update(config["settings"])
    details["versions"] = format_versions(system)
    details["command"] = system["command"]
    return details


def format_versions(system: JsonObject) -> str:
    """Return the names and versions of the installed packages in an `environment`."""
    packages = system["packages"].items()
    return ", ".join(f"{name} {version}" for name, version in packages if version is not None)
