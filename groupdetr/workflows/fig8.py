"""Fig. 8 of the paper on the demo's pictures: neither denoising nor groups, one of them, and both, at equal epochs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from groupdetr.cli.options.demo import Options
from groupdetr.engine.accelerator import environment
from groupdetr.engine.progress import duration
from groupdetr.engine.run_folder import write_json
from groupdetr.experiments import FIG8, Variant
from groupdetr.report.fig8 import Fig8Results, write_fig8_report
from groupdetr.report.run_summary import summary
from groupdetr.tasks.demo_spec import Exhibit
from groupdetr.workflows.demo import (
    about,
    arm,
    as_row,
    at_once,
    claim,
    console,
    draw,
    exhibit_of,
    several,
    show,
)
from groupdetr.workflows.parallel_runs import Arm, train_all


def fig8(options: Options) -> dict[str, Any]:
    """Everything; returns what metrics.json holds."""
    started, exhibit = time.monotonic(), exhibit_of(FIG8[0].preset)
    arms = [
        training(options, exhibit, variant, seed) for seed in options.all_seeds for variant in FIG8
    ]
    claim(options, figure=8)
    draw(options, exhibit)
    console.print("training with neither denoising nor groups, with one of them, and with both")
    train_all(arms, at_once(options), console)
    runs = [replace(summary(arm.run), label=arm.label) for arm in arms]
    reported = {variant.label: variant.reported for variant in FIG8}
    models = ", ".join(dict.fromkeys(variant.preset for variant in FIG8))
    write_fig8_report(
        options.folder / "report.html", Fig8Results(runs, reported, about(models, exhibit))
    )
    rows = [
        {"training": arm.label, "model": arm.model, **as_row(run)} for arm, run in zip(arms, runs)
    ]
    content = {"figure": 8, "runs": rows, "paper": reported, "environment": environment()}
    write_json(options.folder / "metrics.json", content)
    show(runs)
    console.print(
        f"{duration(time.monotonic() - started)} in all; open {options.folder / 'report.html'}"
    )
    return content


def training(options: Options, exhibit: Exhibit, variant: Variant, seed: int) -> Arm:
    groups = several(options, variant.preset) if variant.grouped else 1
    folder = options.folder / f"{variant.label}-seed{seed}"
    return replace(
        arm(options, exhibit, groups, seed),
        model=variant.preset,
        folder=folder,
        label=variant.label,
    )
