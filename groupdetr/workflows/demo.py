"""The demo: draws a data set, trains with one group and with K on it, and writes the page that compares them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from groupdetr.cli.options.demo import Options
from groupdetr.engine.accelerator import cores, environment
from groupdetr.engine.progress import duration, percent
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import UsageError
from groupdetr.experiments import experiment
from groupdetr.report.comparison import RunSummary
from groupdetr.report.demo import DemoResults, write_demo_report
from groupdetr.report.run_summary import summary
from groupdetr.tasks.demo_spec import Exhibit
from groupdetr.workflows.parallel_runs import Arm, Longer, Pair, train_all
from groupdetr.workflows.task_workflows import verbs_for

console = Console(highlight=False, soft_wrap=True)


def demo(options: Options) -> dict[str, Any]:
    """Everything; returns what metrics.json holds."""
    started, exhibit = time.monotonic(), exhibit_of(options.preset)
    most = several(options, options.preset)
    claim(options, model=options.preset)
    draw(options, exhibit)
    pairs = [
        Pair(arm(options, exhibit, 1, seed), arm(options, exhibit, most, seed))
        for seed in options.all_seeds
    ]
    console.print(
        f"training with 1 and with {most} groups of queries, and with 1 for as long as {most} take"
    )
    longer = Longer(pairs)
    train_all(
        [arm for pair in pairs for arm in (pair.grouped, pair.base)],
        at_once(options),
        console,
        longer,
    )
    results = Results(
        [summary(arm.run) for pair in pairs for arm in (pair.base, pair.grouped)],
        [
            replace(summary(longer.arms[pair].run), label=f"K = {pair.base.groups}, longer")
            for pair in pairs
        ],
    )
    write_json(options.folder / "metrics.json", results.to_json())
    report(options, exhibit, pairs[0], results)
    show(sorted([*results.runs, *results.longer], key=lambda run: (run.seed, run.groups, run.name)))
    console.print(
        f"{duration(time.monotonic() - started)} in all; open {options.folder / 'report.html'}"
    )
    return results.to_json()


def several(options: Options, preset: str) -> int:
    """K of a training with groups."""
    groups = (experiment(preset).groups or 1) if options.groups is None else options.groups
    if groups < 2:
        raise UsageError("the demo compares one group with several", remedy="--groups 2 or more")
    return groups


def claim(options: Options, **what: object) -> None:
    """The folder is for this demo: other options than those it was begun with would mix two comparisons."""
    asked = {**what, "groups": options.groups, "epochs": options.epochs}
    note = options.folder / "demo.json"
    if note.is_file() and json.loads(note.read_text()) != asked:
        raise UsageError(
            "this folder holds a demo with other options",
            str(options.folder),
            "choose another --out",
        )
    write_json(note, asked)


def exhibit_of(model: str) -> Exhibit:
    return verbs_for(experiment(model).task).exhibit


def draw(options: Options, exhibit: Exhibit) -> None:
    console.print(f"drawing {exhibit.about} into {options.data}")
    exhibit.draw(options.data)


def at_once(options: Options) -> int:
    return min(2, cores()) if options.at_once is None else options.at_once


def arm(options: Options, exhibit: Exhibit, groups: int, seed: int) -> Arm:
    """One training of the demo, on one processor thread."""
    epochs = exhibit.settings.epochs if options.epochs is None else options.epochs
    settings = replace(
        exhibit.settings, epochs=epochs, seed=seed, threads=1, workers=0, device="cpu"
    )
    steps = settings.total_steps(exhibit.count) or 1
    return Arm(
        options.preset,
        options.data,
        options.folder / f"k{groups}-seed{seed}",
        groups,
        settings,
        steps,
    )


@dataclass(frozen=True)
class Results:
    """``runs``: one group and K, at equal epochs. ``longer``: one group in the time of K, for each seed."""

    runs: list[RunSummary]
    longer: list[RunSummary]

    def to_json(self) -> dict[str, Any]:
        """What metrics.json holds."""
        runs, longer = ([as_row(run) for run in runs] for runs in (self.runs, self.longer))
        return {"runs": runs, "equal_time": longer, "environment": environment()}


def show(runs: Sequence[RunSummary]) -> None:
    for run in runs:
        figures = ", ".join(f"{name} {percent(run.metrics[name])}" for name in [*run.metrics][:2])
        cost = f"{run.epochs:g} epochs in {duration(run.seconds)}, {run.peak_memory_mb:.0f} MB"
        console.print(f"{run.name}, seed {run.seed}: {figures}; {cost}")


def as_row(run: RunSummary) -> dict[str, Any]:
    figures = {name: None if math.isnan(value) else value for name, value in run.metrics.items()}
    cost = {"epochs": run.epochs, "seconds": run.seconds, "peak_memory_mb": run.peak_memory_mb}
    return {"groups": run.groups, "seed": run.seed, **figures, **cost}


def report(options: Options, exhibit: Exhibit, pair: Pair, results: Results) -> None:
    """report.html: figures of all seeds, and what the first of them finds."""
    subject = exhibit.subject(experiment(options.preset).task.kind)
    shown = exhibit.sections(
        options.data, {f"K = {arm.groups}": arm.folder for arm in (pair.base, pair.grouped)}
    )
    page = DemoResults(results.runs, subject, results.longer, shown, about(options.preset, exhibit))
    write_demo_report(options.folder / "report.html", page)


def about(model: str, exhibit: Exhibit) -> dict[str, object]:
    """What was trained, on what and where."""
    machine = environment()
    return {
        "model": model,
        "data": f"{exhibit.about}, {exhibit.config}",
        "machine": f"{machine['cores']} cores, one thread for each training, {machine['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
        "command": machine["command"],
    }
