"""The parts that the demo and its Fig. 8 have in common: the plan, the trainings and the output."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groupdetr.console.output import create_console
from groupdetr.engine.accelerator import cores, environment
from groupdetr.engine.progress import format_duration, format_percent
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import UsageError
from groupdetr.registry import experiment
from groupdetr.report.comparison import RunSummary
from groupdetr.report.run_summary import format_versions
from groupdetr.settings import MANY, RANGES, expect_positive, expect_whole_number
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.demo_spec import DemoSpec
from groupdetr.tasks.registry import task_class
from groupdetr.workflows.output_folder import expect_demo_folder
from groupdetr.workflows.parallel_runs import TrainingRun
from groupdetr.workflows.task_workflows import workflows_for

console = create_console()


@dataclass(frozen=True)
class DemoPlan:
    """The number and length of the trainings of a demo, and its folder."""

    folder: Path
    groups: int | None  # K of the trainings with groups; None: that of the preset
    epochs: float | None  # None: those of the demo of the task
    seeds: int  # number of seeds
    seed: int  # the first seed
    at_once: int | None  # trainings in parallel; None: 2 if there are two cores

    def __post_init__(self) -> None:
        expect_positive(epochs=self.epochs)
        expect_whole_number("groups", self.groups, 1, MANY)
        expect_whole_number("seeds", self.seeds, 1, 1000)
        expect_whole_number("seed", self.seed, *RANGES["seed"])
        expect_whole_number("at_once", self.at_once, 1, 1000)

    @property
    def data(self) -> Path:
        """The folder of the dataset."""
        return self.folder / "data"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def report_file(self) -> Path:
        return self.folder / "report.html"

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def num_parallel(self) -> int:
        """The number of trainings that run in parallel."""
        return min(2, cores()) if self.at_once is None else self.at_once

    def num_groups(self, model: str) -> int:
        """Return K of the trainings of a preset with groups."""
        num_groups = experiment(model).recipe.num_groups if self.groups is None else self.groups
        if num_groups < 2:
            raise UsageError(
                "the demo compares one group with several groups", remedy="--groups 2 or more"
            )
        return num_groups

    def training_run(
        self, spec: DemoSpec, model: str, groups: int, seed: int, folder_name: str, label: str = ""
    ) -> TrainingRun:
        """Return one training of the demo, on one processor thread."""
        settings = replace(
            spec.settings,
            epochs=spec.settings.epochs if self.epochs is None else self.epochs,
            seed=seed,
            threads=1,
            workers=0,
            device="cpu",
        )
        return TrainingRun(
            model=model,
            data=self.data,
            folder=self.folder / folder_name,
            groups=groups,
            settings=settings,
            steps=settings.total_steps(spec.num_train) or 1,
            label=label,
        )

    def check_output_folder(self, **options: object) -> None:
        """Raise `UsageError` if the folder holds a demo with other options.

        Otherwise two comparisons would be mixed. The options are recorded in demo.json.
        """
        expect_demo_folder(self.folder)
        recorded = self.folder / "demo.json"
        current = {**options, "groups": self.groups, "epochs": self.epochs}
        if recorded.is_file() and json.loads(recorded.read_text(encoding="utf-8")) != current:
            raise UsageError(
                "this folder holds a demo with other options",
                str(self.folder),
                "choose another folder with --out",
            )
        write_json(recorded, current)

    def write_data(self, spec: DemoSpec) -> None:
        """Write the dataset, unless it exists already."""
        console.print(f"writing {spec.description} to {self.data}")
        spec.write_data(self.data)


def demo_spec_of(model: str) -> DemoSpec:
    """Return the demo of the task that a preset is trained for."""
    return workflows_for(task_class(experiment(model).task)).demo_spec


def metrics_row(run: RunSummary) -> JsonObject:
    """Return the entry of one run in metrics.json. Metrics that are undefined are None."""
    row: JsonObject = {"groups": run.groups, "seed": run.seed}
    for name, value in run.metrics.items():
        row[name] = None if math.isnan(value) else value
    row["epochs"] = run.epochs
    row["seconds"] = run.seconds
    row["peak_memory_mb"] = run.peak_memory_mb
    return row


def print_runs(runs: Sequence[RunSummary]) -> None:
    """Print one line for each run: its two main metrics, time and memory."""
    for run in runs:
        main_metrics = list(run.metrics)[:2]
        metrics = ", ".join(f"{name} {format_percent(run.metrics[name])}" for name in main_metrics)
        cost = (
            f"{run.epochs:g} epochs in {format_duration(run.seconds)}, {run.peak_memory_mb:.0f} MB"
        )
        console.print(f"{run.name}, seed {run.seed}: {metrics}; {cost}")


def print_end(seconds: float, report_file: Path) -> None:
    console.print(f"{format_duration(seconds)} in total; open {report_file}")


def demo_details(models: str, spec: DemoSpec) -> Mapping[str, object]:
    """Return models, data, machine, versions and command, for the page."""
    system = environment()
    return {
        "model": models,
        "data": f"{spec.description}, {spec.config}",
        "machine": f"{system['cores']} cores, one thread for each training, {system['system']}",
        "versions": format_versions(system),
        "command": system["command"],
    }
