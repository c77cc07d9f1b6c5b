"""What a training prints before it starts: what it is, and what is advised against."""

from __future__ import annotations

import math

from torch import nn

from groupdetr.console.text import quantity
from groupdetr.data.layouts import DatasetSplits
from groupdetr.engine.optimizer import MAX_WARMUP
from groupdetr.files.published_weights import WEIGHTS_OF_PRESETS
from groupdetr.modeling.backbones.registry import NONE_FROZEN, can_load, has_weights
from groupdetr.modeling.detr import DetectionTransformer, part_of
from groupdetr.modeling.frozen import trained_batch_norms
from groupdetr.tasks.input_shape import input_shape
from groupdetr.workflows.detector_plan import DetectorPlan

FEW_STEPS = 300  # a training with fewer steps is advised against, before it starts


def describe(plan: DetectorPlan, model: nn.Module, total_steps: int | None) -> str:
    """Return a description of the training in four lines: model, data, plan and output.

    ``total_steps`` are those of the trainer: a run that is resumed may have had another batch.
    """
    settings = plan.settings
    recipe = plan.recipe
    task = plan.task
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if total_steps is None:
        length = f"{settings.minutes:g} minutes"
    elif settings.steps:
        length = f"{total_steps} steps"
    else:
        length = f"{settings.epochs:g} epochs = {total_steps} steps"
    # Images of scenes are resized to a height, all others to a shortest side.
    if task.input_kind == "scenes":
        samples = "samples"
        side = "image height"
    else:
        samples = "images"
        side = "squares of" if plan.recipe.square_images else "shortest side"
    pixels = str(settings.imgsz)
    rounded = input_shape(recipe).round(settings.imgsz)
    if rounded != settings.imgsz:
        pixels = f"{rounded}, because sides are multiples of {recipe.size_divisor}"
    groups = f"{quantity(recipe.num_groups, 'group')} of {recipe.num_queries} queries"
    if settings.groups_schedule is not None:
        groups += f" by the schedule {settings.groups_schedule}"
    if settings.groups_per_step is not None:
        groups += f", {settings.groups_per_step} of them in a step"
    held_out = isinstance(plan.dataset, DatasetSplits) and plan.dataset.held_out
    remark = " that were held out of train" if held_out else ""
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    not_trained = f" ({frozen / 1e6:.2f} M frozen)" if settings.freeze else ""
    return "\n".join(
        [
            f"model   {plan.config.model}: {parameters / 1e6:.2f} M parameters{not_trained}, "
            f"{groups}, {quantity(recipe.num_classes, 'class', 'classes')}",
            f"data    {len(task.train)} training and {len(task.val)} validation {samples}{remark}, "
            f"{side} {pixels}",
            f"plan    {length} of {settings.batch} images, "
            f"learning rate {settings.lr:g} (backbone {settings.backbone_lr:g}), "
            f"on {plan.accelerator.device}, loader processes: {plan.workers}",
            f"output  {plan.run.path}",
        ]
    )


def advice(plan: DetectorPlan) -> list[str]:
    """Return lines of advice for a new training, which are printed first.

    They are about random stages that are not trained, and about a training that is too short.
    """
    if plan.resumes:
        return []
    lines = []
    recipe = plan.recipe
    is_random = not recipe.pretrained_backbone and not plan.config.replaces_backbone
    if is_random and "backbone" in plan.settings.freeze:
        lines.append(
            "note    the backbone has random weights, and --freeze backbone keeps them; use "
            "--weights RUN --weights-of backbone, or --pretrained-backbone FILE"
        )
    elif is_random and recipe.frozen_stages > NONE_FROZEN:
        remedy = "train all layers with --set frozen_stages=-1"
        if can_load(recipe.backbone):
            source = "auto" if has_weights(recipe.backbone) else "FILE"
            remedy += f", or use --pretrained-backbone {source}"
        lines.append(
            f"note    the backbone has random weights, and frozen_stages={recipe.frozen_stages} "
            f"keeps those of its first layers; {remedy}"
        )
    elif is_random and recipe.preset in WEIGHTS_OF_PRESETS:
        lines.append(
            "note    all weights start as random numbers, and this detector is published to be "
            f"fine-tuned; use --weights {WEIGHTS_OF_PRESETS[recipe.preset]}"
        )
    total = plan.total_steps
    if total is None:
        return lines
    settings = plan.settings
    if settings.warmup > total * MAX_WARMUP:
        end = quantity(math.ceil(total * MAX_WARMUP), "step")
        lines.append(
            f"note    the warm-up of {settings.warmup} steps is longer than a third of the "
            f"training; the learning rate is reached after {end}"
        )
    if total < FEW_STEPS:
        epochs = math.ceil(FEW_STEPS * settings.batch / len(plan.task.train))
        more = f"--steps {FEW_STEPS}" if settings.steps else f"--epochs {epochs}"
        lines.append(
            f"note    {total} steps teach a detector little; give it more with {more}"
            + (", or with a smaller --batch" if settings.batch > 2 and not settings.steps else "")
        )
    return lines


def batch_norm_notes(plan: DetectorPlan, model: DetectionTransformer) -> list[str]:
    """Return a line if batch norms are trained and micro-batches change what they compute."""
    norms = trained_batch_norms(model)
    accumulate = plan.settings.accumulate
    if not norms or accumulate == 1:
        return []
    parts = sorted({part_of(name) for name in norms})
    return [
        f"note    {quantity(len(norms), 'batch norm')} of the {' and '.join(parts)} are trained, "
        f"with the statistics of {quantity(plan.micro_batch_size, 'image')}: --accumulate "
        f"{accumulate} does not give the result of --accumulate 1; fix the norms with "
        "--set freeze_norms=true"
    ]
