"""`groupdetr demo`: train with one group and with K groups on synthetic data, and compare them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from groupdetr.engine.accelerator import environment
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import UsageError
from groupdetr.registry import experiment
from groupdetr.report.comparison import RunSummary
from groupdetr.report.demo import DemoResults, write_demo_report
from groupdetr.report.run_summary import summarize_run
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.demo_spec import DemoSpec
from groupdetr.tasks.registry import task_class
from groupdetr.workflows.demo_plan import (
    DemoPlan,
    console,
    demo_details,
    demo_spec_of,
    metrics_row,
    print_end,
    print_runs,
)
from groupdetr.workflows.fig8 import fig8
from groupdetr.workflows.parallel_runs import Comparison, EqualTimeRuns, TrainingRun, train_all

DEFAULT_MODEL = "conditional-detr-tiny"


def demo(
    *,
    model: str | None,
    groups: int | None,
    epochs: float | None,
    seeds: int,
    seed: int,
    at_once: int | None,
    out: Path | None,
    figure: int | None,
) -> JsonObject:
    """Run the demo, or that of Fig. 8, and return the content of metrics.json.

    ``model`` is a preset. ``groups``, ``epochs`` and ``at_once`` (trainings in parallel) have
    defaults if they are None. There are ``seeds`` trainings of each kind; the first has the seed
    ``seed``. An interrupted demo continues.
    """
    default_folder = Path("runs/demo" if figure is None else f"runs/fig{figure}")
    plan = DemoPlan(out or default_folder, groups, epochs, seeds, seed, at_once)
    if figure is not None and model is not None:
        raise UsageError(
            f"Fig. {figure} has its own detectors", remedy="leave out --model or --figure"
        )
    return compare_groups(plan, model or DEFAULT_MODEL) if figure is None else fig8(plan)


def compare_groups(plan: DemoPlan, model: str) -> JsonObject:
    """Train with one group, with K groups, and with one group for the time of K.

    Write the files of the demo and return the content of metrics.json.
    """
    start_time = time.monotonic()
    spec = demo_spec_of(model)
    num_groups = plan.num_groups(model)
    plan.check_output_folder(model=model)
    plan.write_data(spec)

    comparisons = []
    for seed in plan.all_seeds:
        base = plan.training_run(spec, model, 1, seed, f"k1-seed{seed}")
        grouped = plan.training_run(spec, model, num_groups, seed, f"k{num_groups}-seed{seed}")
        comparisons.append(Comparison(base, grouped))
    console.print(
        f"training with 1 group, with {num_groups} groups, and with 1 group for the time that "
        f"{num_groups} groups take"
    )
    # The runs with groups are the longest, so they start first.
    runs: list[TrainingRun] = []
    for comparison in comparisons:
        runs += [comparison.grouped, comparison.base]
    equal_time = EqualTimeRuns(comparisons)
    train_all(runs, plan.num_parallel, console, equal_time.new_runs)

    results = summarize(comparisons, equal_time)
    content = results.to_json()
    write_json(plan.metrics_file, content)
    write_report(plan, spec, model, comparisons[0], results)
    in_order = sorted(
        [*results.runs, *results.longer], key=lambda run: (run.seed, run.groups, run.name)
    )
    print_runs(in_order)
    print_end(time.monotonic() - start_time, plan.report_file)
    return content


@dataclass(frozen=True)
class RunSummaries:
    """The summaries of all runs, seed by seed."""

    runs: list[RunSummary]  # one group and K groups, at equal epochs
    longer: list[RunSummary]  # one group in the time of K

    def to_json(self) -> JsonObject:
        """Return the content of metrics.json."""
        return {
            "runs": [metrics_row(run) for run in self.runs],
            "equal_time": [metrics_row(run) for run in self.longer],
            "environment": environment(),
        }


def summarize(comparisons: list[Comparison], equal_time: EqualTimeRuns) -> RunSummaries:
    """Read the results of all runs."""
    runs = []
    longer = []
    for comparison in comparisons:
        runs.append(summarize_run(comparison.base.run))
        runs.append(summarize_run(comparison.grouped.run))
        longer_base = summarize_run(equal_time.runs[comparison].run)
        longer.append(replace(longer_base, label=f"K = {comparison.base.groups}, longer"))
    return RunSummaries(runs, longer)


def write_report(
    plan: DemoPlan, spec: DemoSpec, model: str, comparison: Comparison, results: RunSummaries
) -> None:
    """Write report.html: the metrics of all seeds, and detections of the first seed."""
    folders = {}
    for run in (comparison.base, comparison.grouped):
        folders[f"K = {run.groups}"] = run.folder
    page = DemoResults(
        runs=results.runs,
        subject=spec.subject(task_class(experiment(model).task).kind),
        longer=results.longer,
        sections=spec.sections(plan.data, folders),
        details=demo_details(model, spec),
    )
    write_demo_report(plan.report_file, page)
