"""The criteria that `criterion.py` compares: ours, LW-DETR's, rfdetr's, and the usual form.

The usual form is the one that DETR repositories share. Each criterion has two functions: one from
predictions and targets to the summed loss, and one to the matches alone.
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
from groupdetr.structures.targets import Target, TargetBatch

LossFunction = Callable[[list[Predictions], list[Target]], Tensor]  # returns the summed loss
MatchFunction = Callable[[list[Predictions], list[Target]], Any]


@dataclass
class Criterion:
    """A criterion that is compared: predictions of L layers and targets -> loss, or matches."""

    loss: LossFunction
    match: MatchFunction


# Ours


def our_set_criterion() -> SetCriterion:
    return SetCriterion([Focal(2.0, 2.0), L1(5.0, 5.0), GIoU(2.0, 2.0)], match_groups)


def to_outputs(layers: list[Predictions]) -> Outputs:
    """Return outputs of these layers. Nothing of the queries is used but their shape."""
    boxes = layers[0].boxes.detach()
    return Outputs(layers, Queries(boxes, boxes))


def ours(compiled: bool) -> Criterion:
    set_criterion = our_set_criterion()
    if compiled:
        set_criterion.compile_parts()

    def loss(layers: list[Predictions], targets: list[Target]) -> Tensor:
        losses = set_criterion(to_outputs(layers), targets)
        return torch.stack(list(losses.values())).sum()

    def match(layers: list[Predictions], targets: list[Target]) -> Assignment:
        supervised = to_outputs(layers).supervised()[0]
        return set_criterion.assign(supervised, TargetBatch.from_targets(targets))

    return Criterion(loss, match)


# The usual form: a loop over layers, one over groups and images, one-hot targets, and the GIoU of
# all predictions with all objects


def usual_loss(layers: list[Predictions], targets: list[Target]) -> Tensor:
    groups = layers[0].logits.shape[1]
    num_objects = max(1, sum(len(target) for target in targets)) * groups
    return torch.stack([usual_layer_loss(layer, targets) for layer in layers]).sum() / num_objects


def usual_layer_loss(layer: Predictions, targets: list[Target]) -> Tensor:
    """Return the weighted sum of focal, L1 and GIoU loss of one layer."""
    groups = layer.logits.shape[1]
    logits = layer.logits.flatten(1, 2)
    boxes = layer.boxes.flatten(1, 2)
    image, query, label, target_boxes = usual_match_layer(
        logits.detach(), boxes.detach(), targets, groups
    )

    one_hot = torch.zeros_like(logits)
    one_hot[image, query, label] = 1
    scores = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    correct = scores * one_hot + (1 - scores) * (1 - one_hot)
    alpha = 0.25 * one_hot + 0.75 * (1 - one_hot)
    focal = (alpha * (1 - correct) ** 2 * cross_entropy).sum()

    matched_boxes = boxes[image, query]
    l1 = (matched_boxes - target_boxes).abs().sum()
    giou = generalized_box_iou(
        box_convert(matched_boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy")
    )
    return 2 * focal + 5 * l1 + 2 * (1 - torch.diag(giou)).sum()


def usual_match(layers: list[Predictions], targets: list[Target]) -> list[tuple[Tensor, ...]]:
    groups = layers[0].logits.shape[1]
    matches = []
    for layer in layers:
        logits = layer.logits.flatten(1, 2)
        matches.append(usual_match_layer(logits, layer.boxes.flatten(1, 2), targets, groups))
    return matches


def usual_match_layer(
    logits: Tensor, boxes: Tensor, targets: list[Target], groups: int
) -> tuple[Tensor, ...]:
    """Return image, query, label and box of every match of one layer.

    ``logits`` [B,K*N,classes] and ``boxes`` [B,K*N,4].
    """
    labels = torch.cat([target.labels for target in targets])
    target_boxes = torch.cat([target.boxes for target in targets])
    scores = logits.flatten(0, 1).sigmoid()
    negative = 0.75 * scores**2 * -(1 - scores + 1e-8).log()
    positive = 0.25 * (1 - scores) ** 2 * -(scores + 1e-8).log()
    all_boxes = boxes.flatten(0, 1)
    giou = generalized_box_iou(
        box_convert(all_boxes, "cxcywh", "xyxy"), box_convert(target_boxes, "cxcywh", "xyxy")
    )
    l1 = torch.cdist(all_boxes, target_boxes, p=1)
    cost = 2 * (positive - negative)[:, labels] + 5 * l1 - 2 * giou
    cost = cost.view(len(targets), boxes.shape[1], -1).cpu()

    queries_per_group = boxes.shape[1] // groups
    counts = [len(target) for target in targets]
    images, queries, matched_labels, matched_boxes = [], [], [], []
    for group, group_cost in enumerate(cost.split(queries_per_group, dim=1)):
        for image, image_costs in enumerate(group_cost.split(counts, -1)):
            rows, columns = linear_sum_assignment(image_costs[image])
            query = torch.as_tensor(rows, device=logits.device)
            target = torch.as_tensor(columns, device=logits.device)
            images.append(torch.full_like(query, image))
            queries.append(query + group * queries_per_group)
            matched_labels.append(targets[image].labels[target])
            matched_boxes.append(targets[image].boxes[target])
    return (
        torch.cat(images),
        torch.cat(queries),
        torch.cat(matched_labels),
        torch.cat(matched_boxes),
    )


# The criteria of other projects, which have the same interface

WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def to_their_outputs(layers: list[Predictions]) -> list[dict[str, Tensor]]:
    """Return the predictions of every layer as they take them, all groups in one axis."""
    outputs = []
    for layer in layers:
        logits, boxes = layer.logits.flatten(1, 2), layer.boxes.flatten(1, 2)
        outputs.append({"pred_logits": logits, "pred_boxes": boxes})
    return outputs


def to_their_targets(targets: list[Target]) -> list[dict[str, Tensor]]:
    """Return labels and boxes only: with an entry for masks, rfdetr would compare masks."""
    return [{"labels": target.labels, "boxes": target.boxes} for target in targets]


def their_loss(
    criterion: torch.nn.Module, layers: list[Predictions], targets: list[Target]
) -> Tensor:
    """Return the weighted sum of the losses of their criterion."""
    outputs = to_their_outputs(layers)
    losses = criterion({**outputs[-1], "aux_outputs": outputs[:-1]}, to_their_targets(targets))
    weighted = []
    for name, loss in losses.items():
        term = name.rstrip("_0123456789")  # the number of the layer
        weighted.append(WEIGHTS.get(term, 0.0) * loss)
    return torch.stack(weighted).sum()


def build_theirs(
    criterion_module: ModuleType, matcher_module: ModuleType, classes: int, groups: int
) -> tuple[Any, Any]:
    """Return their criterion and their matcher, both with the weights of ours."""
    matcher = matcher_module.HungarianMatcher(2.0, 5.0, 2.0)
    criterion = criterion_module.SetCriterion(
        classes, matcher, WEIGHTS, 0.25, ["labels", "boxes"], group_detr=groups
    )
    return criterion.train(), matcher


def lwdetr(checkout: Path, classes: int, groups: int) -> Criterion:
    criterion_module = peers.lwdetr(checkout, "models.lwdetr")
    matcher_module = peers.lwdetr(checkout, "models.matcher")
    criterion, matcher = build_theirs(criterion_module, matcher_module, classes, groups)

    def match(layers: list[Predictions], targets: list[Target]) -> list[Any]:
        their_targets = to_their_targets(targets)
        matches = []
        for output in to_their_outputs(layers):
            matches.append(matcher(output, their_targets, group_detr=groups))
        return matches

    return Criterion(partial(their_loss, criterion), match)


def rfdetr(packages: Path, classes: int, groups: int) -> Criterion:
    """The criterion of rfdetr as it runs on a CPU."""
    criterion_module = peers.rfdetr(packages, "rfdetr.models.criterion")
    matcher_module = peers.rfdetr(packages, "rfdetr.models.matcher")
    criterion, matcher = build_theirs(criterion_module, matcher_module, classes, groups)

    def match(layers: list[Predictions], targets: list[Target]) -> list[Any]:
        outputs, their_targets = to_their_outputs(layers), to_their_targets(targets)
        matches: list[Any] = matcher._match_many(outputs, their_targets, group_detr=groups)
        assert matches, "rfdetr would use its matcher for one layer at a time"
        return matches

    return Criterion(partial(their_loss, criterion), match)
