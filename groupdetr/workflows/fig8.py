"""`groupdetr demo --figure 8`: Fig. 8 of the paper, on the synthetic data of the demo.

It compares trainings with denoising, groups, both or neither.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from groupdetr.engine.accelerator import environment
from groupdetr.engine.run_folder import write_json
from groupdetr.report.fig8 import Fig8Results, write_fig8_report
from groupdetr.report.run_summary import summarize_run
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.demo_spec import DemoSpec
from groupdetr.workflows.demo_plan import (
    DemoPlan,
    console,
    demo_details,
    demo_spec_of,
    metrics_row,
    print_end,
    print_runs,
)
from groupdetr.workflows.parallel_runs import TrainingRun, train_all


@dataclass(frozen=True)
class Variant:
    """One of the trainings that Fig. 8 compares."""

    label: str
    preset: str
    grouped: bool  # True: trained with K groups, False: with one
    reported: float  # COCO AP in the paper, in percent


# The reported AP is that of DAB-DETR with ResNet-50 after 12 epochs.
FIG8 = (
    Variant("none", "dab-detr-tiny", grouped=False, reported=35.2),
    Variant("denoising", "dn-detr-tiny", grouped=False, reported=38.6),
    Variant("groups", "dab-detr-tiny", grouped=True, reported=39.1),
    Variant("both", "dn-detr-tiny", grouped=True, reported=40.6),
)


def fig8(plan: DemoPlan) -> JsonObject:
    """Train the four variants at equal epochs, and write the files of the demo.

    Return the content of metrics.json.
    """
    start_time = time.monotonic()
    spec = demo_spec_of(FIG8[0].preset)
    runs = []
    for seed in plan.all_seeds:
        for variant in FIG8:
            runs.append(variant_run(plan, spec, variant, seed))
    plan.check_output_folder(figure=8)
    plan.write_data(spec)
    console.print("training with neither denoising nor groups, with one of them, and with both")
    train_all(runs, plan.num_parallel, console)

    summaries = [replace(summarize_run(run.run), label=run.label) for run in runs]
    reported = {variant.label: variant.reported for variant in FIG8}
    models = ", ".join(dict.fromkeys(variant.preset for variant in FIG8))
    results = Fig8Results(summaries, reported, demo_details(models, spec))
    write_fig8_report(plan.report_file, results)
    rows = []
    for run, summary in zip(runs, summaries):
        rows.append({"training": run.label, "model": run.model, **metrics_row(summary)})
    content = {"figure": 8, "runs": rows, "paper": reported, "environment": environment()}
    write_json(plan.metrics_file, content)
    print_runs(summaries)
    print_end(time.monotonic() - start_time, plan.report_file)
    return content


def variant_run(plan: DemoPlan, spec: DemoSpec, variant: Variant, seed: int) -> TrainingRun:
    """Return the training of a variant with a seed."""
    groups = plan.num_groups(variant.preset) if variant.grouped else 1
    folder_name = f"{variant.label}-seed{seed}"
    return plan.training_run(spec, variant.preset, groups, seed, folder_name, variant.label)
