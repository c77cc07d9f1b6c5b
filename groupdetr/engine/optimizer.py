"""The optimizer, the learning rate of every step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from groupdetr.engine.sharded_tensors import local_part
from groupdetr.engine.step_groups import GroupRows
from groupdetr.errors import UsageError
from groupdetr.modeling.detr import DetectionTransformer, part_of
from groupdetr.settings import Settings

MAX_WARMUP = 1 / 3  # the largest fraction of a training in which the learning rate rises
# A parameter group: the part of the model ("rest", "backbone" or "decoder"), the factor of the
# part's learning rate, and the weight decay.
GroupKey = tuple[str, float, float]


def create_optimizer(
    model: DetectionTransformer, settings: Settings, rows: GroupRows | None = None
) -> torch.optim.AdamW:
    """Return AdamW with one parameter group for every combination of rate and weight decay.

    With ``rows``, it has the rows of every group in place of the parameters that hold all groups.

    The first two groups are always the rest of the model and the backbone. Further groups hold
    the decoder if it has a rate of its own, backbone layers with other rates, and parameters
    without weight decay.
    """
    members: dict[GroupKey, list[nn.Parameter]] = {
        ("rest", 1.0, settings.weight_decay): [],
        ("backbone", 1.0, settings.weight_decay): [],
    }
    for key, name, parameter in _grouped_parameters(model, settings):
        parts = [parameter] if rows is None else rows.in_place_of(name, parameter)
        members.setdefault(key, []).extend(parts)
    groups = [
        {"params": parameters, "part": part, "factor": factor, "weight_decay": decay}
        for (part, factor, decay), parameters in members.items()
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    if rows is not None and rows.have_gaps:
        fused = False  # It would write to the rows of other groups.
    return torch.optim.AdamW(
        groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=fused
    )


def _grouped_parameters(
    model: DetectionTransformer, settings: Settings
) -> Iterator[tuple[GroupKey, str, nn.Parameter]]:
    """Yield the key of the group, the name, and the parameter itself of all that are trained."""
    backbone = model.backbone
    if settings.layer_decay is not None and not backbone.supports_layer_decay:
        raise UsageError(
            "--layer-decay needs a backbone that declares its layers, and this one does not",
            remedy="choose --layer-decay None",
        )
    undecayed = set(model.recipe.no_weight_decay(model))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, _, name_in_part = name.partition(".")
        decay = 0.0 if name in undecayed else settings.weight_decay
        if part != "backbone":
            has_own_rate = settings.decoder_lr is not None and part_of(name) == "decoder"
            yield ("decoder" if has_own_rate else "rest", 1.0, decay), name, parameter
            continue
        factor = 1.0
        if settings.layer_decay is not None:
            factor = backbone.lr_factor(name_in_part, settings.layer_decay)
        if not backbone.has_weight_decay(name_in_part):
            decay = 0.0
        yield ("backbone", factor, decay), name, parameter


def set_learning_rates(
    optimizer: torch.optim.Optimizer, settings: Settings, step: int, progress: float
) -> float:
    """Set the learning rates of step ``step``, counted from 0, and return that of the first group.

    ``progress`` in [0,1] is the fraction of the training that is done. The rates depend on these
    arguments only, so no scheduler state is saved.
    """
    warmup = 1.0
    if settings.warmup:
        # However short a training is, it reaches its rate after `MAX_WARMUP` of it.
        warmup = min(1.0, max((step + 1) / settings.warmup, progress / MAX_WARMUP))
    if settings.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        drops = sum(progress >= drop for drop in settings.lr_drop_fractions)
        factor = 0.1**drops
    decoder_lr = settings.lr if settings.decoder_lr is None else settings.decoder_lr
    rates = {"rest": settings.lr, "backbone": settings.backbone_lr, "decoder": decoder_lr}
    for group in optimizer.param_groups:
        group["lr"] = warmup * factor * rates[group["part"]] * group["factor"]
    return float(optimizer.param_groups[0]["lr"])


class MovingAverage(AveragedModel):
    """A copy of a model whose weights are an exponential moving average.

    Without ``warmup``, the first update copies the model, and ``decay`` is constant. With
    ``warmup`` tau, the average begins with the weights that the model has now, and update n,
    counted from 1, has the decay ``decay`` * (1 - exp(-n / tau)), as in YOLOv5 and RF-DETR: the
    early average follows the model closely.

    A parameter that is not trained is that of the model itself, which needs neither memory nor
    time. If parameters are sharded, it is a copy. Buffers are averaged, too.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: int | None = None) -> None:
        super().__init__(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.decay = decay
        self.warmup = warmup
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                module_name, _, own_name = name.rpartition(".")
                setattr(self.module.get_submodule(module_name), own_name, parameter)

    def decay_of_update(self, number: int) -> float:
        """Return the decay of an update, counted from 1. It is 0 for an update that copies."""
        if self.warmup is not None:
            return self.decay * (1 - math.exp(-number / self.warmup))
        return self.decay if number > 1 else 0.0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average of every trained parameter and every buffer towards that of the model.

        ``n_averaged`` counts the updates. It is a part of the state, so a resumed run goes on with
        the same decay. It is on the host, also if the model is on a GPU, so reading it waits for
        nothing.
        """
        # Tensors of one device and type are averaged at once.
        batches: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        averages = chain(self.module.parameters(), self.module.buffers())
        values = chain(model.parameters(), model.buffers())
        for average, value in zip(averages, values, strict=True):
            if average is not value:
                average, value = local_part(average), local_part(value)
                key = (average.device, average.dtype)
                batch = batches.setdefault(key, ([], []))
                batch[0].append(average)
                batch[1].append(value.to(average.device))
        self.n_averaged += 1
        decay = self.decay_of_update(int(self.n_averaged))
        move = get_ema_multi_avg_fn(decay)
        for averages_at_once, values_at_once in batches.values():
            if decay == 0 or not averages_at_once[0].is_floating_point():
                # A counter, such as that of the batches of a batch norm, has no average.
                for average, value in zip(averages_at_once, values_at_once):
                    average.copy_(value)
            else:
                move(averages_at_once, values_at_once, self.n_averaged)


def create_ema(model: nn.Module, decay: float, warmup: int | None = None) -> MovingAverage:
    """Return a copy of the model whose weights are an exponential moving average."""
    return MovingAverage(model, decay, warmup)
