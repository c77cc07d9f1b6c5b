"""What masks cost in training with groups: evaluated lazily, against whole masks of all queries.

    python benchmarks/masks.py [--side 512] [--groups 11] [--out masks.json]

The usual form is that of published code: every prediction computes the masks of all its queries,
which are held until the loss. Matching samples new points for every prediction, and the loss
samples new points for every mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import measure
import step
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import (
    MatchedMaskPairs,
    PointCounts,
    PointSampledMasks,
    pairwise_mask_costs,
)
from groupdetr.criterion.pairs import ObjectTotals
from groupdetr.groups import MATCHES
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import TargetBatch


@dataclass
class Options:
    model: str = "mask2former-r50"
    groups: int = 11
    side: int = 512
    batch: int = 1
    objects: int = 20
    rounds: int = 3
    device: str = "cpu"
    threads: int = 1
    usual: bool = True  # also run the usual form
    quick: bool = False  # smaller, with fewer groups and rounds
    out: Path | None = None  # JSON


QUICK = {"side": 192, "groups": 4, "rounds": 1}


@dataclass(frozen=True)
class WholeMasks(PointSampledMasks):
    """Pairs of masks in the usual form, from whole masks."""

    # The whole masks of the last predictions, [B,K,N,h,w] for each layer. `cost_inputs` computes
    # them, and `matched_pairs` uses them again, as in published code.
    layer_masks: list[Tensor] = field(default_factory=list, compare=False)

    def cost_inputs(self, predictions: Predictions, targets: TargetBatch) -> tuple[Tensor, ...]:
        layers, _, groups, queries, _ = predictions.logits.shape
        labels = targets.labels[None, :, None, None].expand(layers, -1, groups, queries, -1)
        scores = predictions.logits.softmax(-1).gather(-1, labels).mT

        with torch.enable_grad():  # the matcher runs without gradients
            self.layer_masks[:] = [predictions[layer].masks.full() for layer in range(layers)]

        mask_costs = scores.new_zeros(2, *scores.shape)
        for layer, masks in enumerate(self.layer_masks):
            for image, image_masks in enumerate(masks):
                # One set of points for all masks of this image and layer.
                points = torch.rand(1, self.num_points, 2, device=predictions.logits.device)
                image_masks = image_masks.flatten(0, 1)[:, None]  # [K*N,1,h,w]
                logits = sample_masks(image_masks, points.expand(groups * queries, -1, -1))
                target_masks = targets.cropped_masks[image]
                labels_at_points = target_masks.at(points[0] * image_size(predictions))
                costs = torch.stack(pairwise_mask_costs(logits, labels_at_points))  # [2,T,K*N]
                costs = costs.view(2, -1, groups, queries).transpose(1, 2)
                mask_costs[:, layer, image, :, : len(target_masks)] = costs
        return scores, *mask_costs

    def matched_pairs(
        self,
        predictions: Predictions,
        targets: TargetBatch,
        assignment: Assignment,
        objects: ObjectTotals,
    ) -> MatchedMaskPairs:
        layer_index, image, group, query, target = assignment.columns
        losses = []
        for layer, masks in enumerate(self.layer_masks):
            matched_masks = masks[image[layer], group[layer], query[layer]][:, None]  # [M,1,h,w]
            with torch.no_grad():
                points = self.uncertain_points(matched_masks)
                pixel_points = points * image_size(predictions)
                labels = []
                for i, t, mask_points in zip(
                    image[layer].tolist(), target[layer].tolist(), pixel_points
                ):
                    labels.append(targets.cropped_masks[i][[t]].at(mask_points))
                labels_at_points = torch.cat(labels)  # [M,P]
            logits = sample_masks(matched_masks, points)
            cross_entropy = F.binary_cross_entropy_with_logits(
                logits, labels_at_points, reduction="none"
            ).mean(1)
            scores = logits.sigmoid()
            intersection = (scores * labels_at_points).sum(1)
            areas = scores.sum(1) + labels_at_points.sum(1)
            dice = 1 - (2 * intersection + 1) / (areas + 1)
            losses.append(torch.stack([cross_entropy.sum(), dice.sum()]))
        cross_entropy, dice = torch.stack(losses).unbind(1)
        target_classes = (layer_index, image, group, query, targets.labels[image, target])
        return MatchedMaskPairs(
            predictions.logits, target_classes, cross_entropy, dice, objects=objects
        )

    def uncertain_points(self, masks: Tensor) -> Tensor:
        """Return the points of the loss for masks [M,1,h,w]: [M,P,2], x and y in [0,1].

        Every mask has its own points: the least certain candidates, and random ones.
        """
        counts = PointCounts(self.num_points, self.num_points)
        candidates = torch.rand(len(masks), counts.candidates, 2, device=masks.device)
        certainty = sample_masks(masks, candidates).abs()
        uncertain = certainty.topk(counts.uncertain, dim=1, largest=False).indices
        chosen = candidates.gather(1, uncertain[..., None].expand(-1, -1, 2))
        num_random = counts.loss - counts.uncertain
        random = torch.rand(len(masks), num_random, 2, device=masks.device)
        return torch.cat([chosen, random], 1)


def image_size(predictions: Predictions) -> Tensor:
    """Return width and height of the padded images in pixels, [2]."""
    height, width = predictions.masks.mask_features.shape
    return torch.tensor([width, height], device=predictions.logits.device)


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks [M,1,h,w] at points [M,P,2], x and y in [0,1], each at its own: [M,P]."""
    return F.grid_sample(masks, 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


class WholeMaskStep(step.Step):
    """A training step with whole masks."""

    def __init__(self, options: step.Options, groups: int) -> None:
        super().__init__(options, groups)
        recipe: Any = self.model.recipe
        pair_builder = WholeMasks(recipe.num_samples)
        self.criterion = SetCriterion(recipe.terms(), MATCHES[recipe.match], pair_builder)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    step_options = step.Options(
        model=options.model,
        side=options.side,
        batch=options.batch,
        objects=options.objects,
        rounds=options.rounds,
        device=options.device,
        threads=options.threads,
    )
    groups = options.groups
    makers: dict[str, Callable[[], step.Step]] = {
        "K = 1": partial(step.Step, step_options, 1),
        f"K = {groups}": partial(step.Step, step_options, groups),
        f"K = {groups}, a group at a time": partial(step.ChunkedStep, step_options, groups, 1),
    }
    if options.usual:
        for k in (1, groups):
            makers[f"K = {k}, whole masks"] = partial(WholeMaskStep, step_options, k)

    steps = {name: make() for name, make in makers.items()}
    timings = measure.time_interleaved(steps, options.rounds)
    rows = {}
    for name, run in steps.items():
        rows[name] = {
            "step, ms": timings.ms(name),
            "ratio": timings.ratio(name, to="K = 1"),
            "kept, MiB": measure.saved_for_backward(run, run.model.parameters()),
            **step.peak_row(makers[name], run),
        }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(measure.parse(Options, QUICK))
