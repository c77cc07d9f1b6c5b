"""Criteria that are compared: ours, LW-DETR's, rfdetr's, and the form that DETR repositories share.

All are contenders: from predictions and targets to the summed loss, and to the matches alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import peers
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.criterion import SetCriterion
from groupdetr.groups import match_groups
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Objects, Target

Compare = Callable[[list[Predictions], list[Target]], Tensor]  # to the summed loss
Match = Callable[[list[Predictions], list[Target]], Any]


@dataclass
class Contender:
    compare: Compare
    match: Match


# ours


def criterion() -> SetCriterion:
    return SetCriterion([Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)], match_groups)


def no_queries(layers: list[Predictions]) -> Queries:
    nothing = layers[0].boxes.detach()
    return Queries(nothing, nothing)


def ours(compiled: bool) -> Contender:
    compares = criterion()
    if compiled:
        compares.compile_parts()

    def compare(layers: list[Predictions], targets: list[Target]) -> Tensor:
        losses = compares(Outputs(layers, no_queries(layers)), targets)
        return torch.stack(list(losses.values())).sum()

    def match(layers: list[Predictions], targets: list[Target]) -> Assignment:
        stages = Outputs(layers, no_queries(layers)).stages()[0]
        return compares.assign(stages, Objects.from_targets(targets))

    return Contender(compare, match)


# the usual form: a loop over layers, one over groups and images, one-hot targets, GIoU of all with all -------------


def usual(layers: list[Predictions], targets: list[Target]) -> Tensor:
    groups = layers[0].logits.shape[1]
    objects = max(1, sum(map(len, targets))) * groups
    return torch.stack([usual_layer(layer, targets) for layer in layers]).sum() / objects


def usual_layer(layer: Predictions, targets: list[Target]) -> Tensor:
    logits, boxes = layer.logits.flatten(1, 2), layer.boxes.flatten(1, 2)
    image, query, label, wanted = usual_match(
        logits.detach(), boxes.detach(), targets, layer.logits.shape[1]
    )
    present = torch.zeros_like(logits)
    present[image, query, label] = 1
    score, penalty = (
        logits.sigmoid(),
        F.binary_cross_entropy_with_logits(logits, present, reduction="none"),
    )
    right = score * present + (1 - score) * (1 - present)
    focal = ((0.25 * present + 0.75 * (1 - present)) * (1 - right) ** 2 * penalty).sum()
    said = boxes[image, query]
    overlap = generalized_box_iou(
        box_convert(said, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
    )
    return 2 * focal + 5 * (said - wanted).abs().sum() + 2 * (1 - torch.diag(overlap)).sum()


def usual_matches(layers: list[Predictions], targets: list[Target]) -> list[tuple[Tensor, ...]]:
    groups = layers[0].logits.shape[1]
    return [
        usual_match(x.logits.flatten(1, 2), x.boxes.flatten(1, 2), targets, groups) for x in layers
    ]


def usual_match(
    logits: Tensor, boxes: Tensor, targets: list[Target], groups: int
) -> tuple[Tensor, ...]:
    """Image, query, label and box of every match."""
    labels, wanted = torch.cat([t.labels for t in targets]), torch.cat([t.boxes for t in targets])
    score = logits.flatten(0, 1).sigmoid()
    absent, present = (
        0.75 * score**2 * -(1 - score + 1e-8).log(),
        0.25 * (1 - score) ** 2 * -(score + 1e-8).log(),
    )
    said = boxes.flatten(0, 1)
    corners = (box_convert(x, "cxcywh", "xyxy") for x in (said, wanted))
    cost = (
        2 * (present - absent)[:, labels]
        + 5 * torch.cdist(said, wanted, p=1)
        - 2 * generalized_box_iou(*corners)
    )
    cost = cost.view(len(targets), boxes.shape[1], -1).cpu()
    size, found = boxes.shape[1] // groups, []
    for group, part in enumerate(cost.split(size, dim=1)):
        for image, own in enumerate(part.split([len(t) for t in targets], -1)):
            query, target = map(torch.as_tensor, linear_sum_assignment(own[image]))
            chosen = targets[image].labels[target], targets[image].boxes[target]
            found.append((torch.full_like(query, image), query + group * size, *chosen))
    return tuple(map(torch.cat, zip(*found)))


# the criteria of others, which have the same interface

WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def said(
    layers: list[Predictions], targets: list[Target]
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    outputs = [
        {"pred_logits": x.logits.flatten(1, 2), "pred_boxes": x.boxes.flatten(1, 2)} for x in layers
    ]
    return outputs, [vars(target) for target in targets]


def summed(criterion: torch.nn.Module, layers: list[Predictions], targets: list[Target]) -> Tensor:
    outputs, wanted = said(layers, targets)
    losses = criterion({**outputs[-1], "aux_outputs": outputs[:-1]}, wanted)
    return torch.stack(
        [WEIGHTS.get(name.rstrip("_0123456789"), 0.0) * loss for name, loss in losses.items()]
    ).sum()


def theirs(
    criteria: ModuleType, matchers: ModuleType, classes: int, groups: int
) -> tuple[Any, Any]:
    """A criterion and its matcher, both with the weights of ours."""
    matcher = matchers.HungarianMatcher(2.0, 5.0, 2.0)
    losses = ["labels", "boxes"]
    return criteria.SetCriterion(
        classes, matcher, WEIGHTS, 0.25, losses, group_detr=groups
    ).train(), matcher


def lwdetr(checkout: Path, classes: int, groups: int) -> Contender:
    criteria, matchers = (
        peers.lwdetr(checkout, f"models.{name}") for name in ("lwdetr", "matcher")
    )
    criterion, matcher = theirs(criteria, matchers, classes, groups)

    def match(layers: list[Predictions], targets: list[Target]) -> list[Any]:
        outputs, wanted = said(layers, targets)
        return [matcher(output, wanted, group_detr=groups) for output in outputs]

    return Contender(partial(summed, criterion), match)


def rfdetr(packages: Path, classes: int, groups: int) -> Contender:
    """As it runs on a CPU."""
    criteria, matchers = (
        peers.rfdetr(packages, f"rfdetr.models.{name}") for name in ("criterion", "matcher")
    )
    criterion, matcher = theirs(criteria, matchers, classes, groups)

    def match(layers: list[Predictions], targets: list[Target]) -> list[Any]:
        outputs, wanted = said(layers, targets)
        matches: list[Any] = matcher._match_many(outputs, wanted, group_detr=groups)
        assert matches, "they fall back to a matcher for each layer"
        return matches

    return Contender(partial(summed, criterion), match)
