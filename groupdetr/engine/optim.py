"""The optimizer, its rates as a function of progress, and the running mean of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from groupdetr.settings import Settings


def optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW in two groups: the backbone with its own rate, and the rest."""
    backbone: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if name.startswith("backbone.") else rest).append(parameter)
    groups = [{"params": rest, "part": "rest"}, {"params": backbone, "part": "backbone"}]
    fused = all(p.device.type in ("cpu", "cuda") for p in rest)
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, settings: Settings, step: int, progress: float) -> float:
    """Set and return the rate of step ``step`` (from 0) at ``progress`` in [0,1]. A pure function, so nothing of it
    is saved."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        factor = 0.1 if progress >= settings.lr_drop else 1.0
    for group in optimizer.param_groups:
        group["lr"] = warm * factor * (settings.backbone_lr if group["part"] == "backbone" else settings.lr)
    return float(optimizer.param_groups[0]["lr"])


def running_mean(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights follow it slowly."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
