"""What a training says about its precision: that of a GPU, and bf16 where it is slow."""

from __future__ import annotations

from dataclasses import replace

import torch

from groupdetr.engine.precision import Precision, bf16_time, in_precision
from groupdetr.modeling.group_chunks import with_loss
from groupdetr.structures.step_objects import StepObjects
from groupdetr.workflows.auto_memory import FitProblem
from groupdetr.workflows.detector_plan import DetectorPlan

SLOWER = 1.1  # bf16 that takes longer than this many times the time of fp32 is warned about


def precision_notes(plan: DetectorPlan) -> list[str]:
    """Return a line about the precision of a training if there is something to say.

    On a GPU it is the precision that was chosen. On a CPU, bf16 is measured against fp32 in the
    main process, and it is a warning if bf16 is slower.
    """
    device = plan.accelerator.device
    if device.type == "cuda":
        if plan.accelerator.mixed_precision == "bf16":
            other = "; --precision fp32 computes everything in fp32"
            return [f"        in bf16, and in TF32 what stays in fp32{other}"]
        return ["        in fp32, without TF32"]
    if device.type != "cpu" or plan.settings.precision != "bf16" or not plan.is_main_process:
        return []
    ratio = bf16_step_time(plan)
    if ratio <= SLOWER:
        return []
    return [
        f"note    on this CPU, a step in bf16 takes {ratio:.1f} times as long as in fp32, measured "
        "with one image; it is faster with --precision fp32"
    ]


def bf16_step_time(plan: DetectorPlan) -> float:
    """Return the time of forward and backward in bf16 on this CPU, divided by that in fp32.

    It is the processor time of one image, computed by a detector of its own, so that neither
    weights nor random numbers of the training change.
    """
    batch = FitProblem.from_plan(plan).worst_case.batch(1)
    cpu = torch.device("cpu")
    step = StepObjects([len(target) for target in batch.targets])
    with torch.random.fork_rng([]):
        model = replace(plan.recipe, pretrained_backbone=False).build().train()
        network = with_loss(model, plan.recipe.criterion(), plan.settings.group_chunk)

        def forward_and_backward(precision: Precision) -> None:
            model.zero_grad()
            with in_precision(cpu, precision):
                loss, _ = network(batch.images(cpu), batch.targets, step)
            loss.backward()

        return bf16_time(forward_and_backward, cpu)
