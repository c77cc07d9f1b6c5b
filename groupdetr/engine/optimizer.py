"""The optimizer, its rates as a function of progress, and the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from groupdetr.errors import UsageError
from groupdetr.settings import Settings


class Layered(Protocol):
    """What a backbone says of its parameters."""

    has_layers: bool

    def rate_factor(self, name: str, decay: float) -> float: ...

    def is_decayed(self, name: str) -> bool: ...


def optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW in as few groups as there are rates and decays: the rest of the model, the backbone, and of the latter
    whatever learns or decays otherwise."""
    members: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for part in ("rest", "backbone"):  # there in any case, and first
        members[part, 1.0, settings.weight_decay] = []
    for key, parameter in _treated(model, settings):
        members.setdefault(key, []).append(parameter)
    groups = [
        {"params": parameters, "part": part, "factor": factor, "weight_decay": decay}
        for (part, factor, decay), parameters in members.items()
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    return torch.optim.AdamW(
        groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused
    )


def _treated(
    model: nn.Module, settings: Settings
) -> Iterator[tuple[tuple[str, float, float], nn.Parameter]]:
    """Every parameter that learns, with its part, the factor of the part's rate, and its weight decay."""
    backbone: Layered = model.backbone  # type: ignore[assignment]
    if settings.layer_decay is not None and not backbone.has_layers:
        raise UsageError(
            "this backbone has no layers with rates of their own", remedy="leave out --layer-decay"
        )
    undecayed = set(model.recipe.undecayed(model))  # type: ignore[union-attr, operator]
    for name, parameter in model.named_parameters():
        part, _, inner = name.partition(".")
        if not parameter.requires_grad:
            continue
        decay = 0.0 if name in undecayed else settings.weight_decay
        if part == "backbone":
            factor = (
                backbone.rate_factor(inner, settings.layer_decay)
                if settings.layer_decay is not None
                else 1.0
            )
            yield (part, factor, decay if backbone.is_decayed(inner) else 0.0), parameter
        else:
            yield ("rest", 1.0, decay), parameter


def set_rates(
    optimizer: torch.optim.Optimizer, settings: Settings, step: int, progress: float
) -> float:
    """Set and return the rate of step ``step`` (from 0) at ``progress`` in [0,1]. A pure function, so nothing of it
    is saved."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        factor = 0.1 ** sum(progress >= drop for drop in settings.lr_drop)
    for group in optimizer.param_groups:
        base = settings.backbone_lr if group["part"] == "backbone" else settings.lr
        group["lr"] = warm * factor * base * group.get("factor", 1.0)  # older checkpoints have none
    return float(optimizer.param_groups[0]["lr"])


def running_mean(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights follow it slowly."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
