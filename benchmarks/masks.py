"""What masks cost in training, with groups: told lazily, as here, against whole masks of all queries.

    python benchmarks/masks.py [--side 512] [--groups 11] [--out masks.json]

The usual form is that of published code: every prediction makes the masks of all its queries, which are held until
the loss; they are matched at points of each prediction's own, and learned at points of each mask's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import step
import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from groupdetr.criterion.criterion import SetCriterion
from groupdetr.criterion.masks import AtPoints, MatchedMasks, of_all
from groupdetr.structures.assignment import Assignment
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.targets import Objects


@dataclass
class Options:
    model: str = "mask2former-r50"
    groups: int = 11
    side: int = 512
    batch: int = 1
    objects: int = 20
    rounds: int = 3
    threads: int = 1
    usual: bool = True  # also the usual form
    out: Path | None = None  # JSON


class WholeMasks(AtPoints):
    """The usual form."""

    maps: list[Tensor]  # of every prediction [B,K,N,h,w]

    def lay_out(self, predictions: Predictions, objects: Objects) -> tuple[Tensor, ...]:
        stages, _, groups, queries, _ = predictions.logits.shape
        label = objects.labels[None, :, None, None].expand(stages, -1, groups, queries, -1)
        scores = predictions.logits.softmax(-1).gather(-1, label).mT
        measured = scores.new_zeros(2, *scores.shape)
        with torch.enable_grad():
            object.__setattr__(
                self, "maps", [predictions[stage].masks.full() for stage in range(stages)]
            )
        for stage, maps in enumerate(self.maps):
            for image, whole in enumerate(maps):
                points = torch.rand(1, self.num_points, 2)
                said = at(whole.flatten(0, 1)[:, None], points.expand(groups * queries, -1, -1))
                masks = objects.masks[image]
                assert masks is not None
                found = torch.stack(of_all(said, masks.at(points[0] * self.sides(predictions))))
                measured[:, stage, image, :, : len(masks)] = found.view(
                    2, -1, groups, queries
                ).transpose(1, 2)
        return scores, *measured

    def matched(
        self,
        predictions: Predictions,
        objects: Objects,
        assignment: Assignment,
        mean_objects: Tensor,
    ) -> MatchedMasks:
        _, image, group, query, target = assignment.columns
        sums = []
        for stage, maps in enumerate(self.maps):
            own = maps[image[stage], group[stage], query[stage]][:, None]
            with torch.no_grad():
                points = torch.rand(len(own), self.candidates, 2)
                chosen = at(own, points).abs().topk(self.uncertain, dim=1, largest=False).indices
                points = points.gather(1, chosen[..., None].expand(-1, -1, 2))
                points = torch.cat(
                    [points, torch.rand(len(own), self.num_points - self.uncertain, 2)], 1
                )
                wanted = torch.cat(
                    [
                        objects.masks[i][[t]].at(place * self.sides(predictions))
                        for i, t, place in zip(
                            image[stage].tolist(), target[stage].tolist(), points
                        )
                    ]
                )
            said = at(own, points)
            entropy = F.binary_cross_entropy_with_logits(said, wanted, reduction="none").mean(1)
            inside = said.sigmoid()
            shared, areas = (inside * wanted).sum(1), inside.sum(1) + wanted.sum(1)
            sums.append(torch.stack([entropy.sum(), (1 - (2 * shared + 1) / (areas + 1)).sum()]))
        classes = (*assignment.columns[:4], objects.labels[image, target])
        n = mean_objects.clamp(min=1)
        entropy, dice = torch.stack(sums).unbind(1)
        return MatchedMasks(predictions.logits, classes, entropy, dice, n, mean_objects)

    def sides(self, predictions: Predictions) -> Tensor:
        height, width = predictions.masks.canvas.shape
        return torch.tensor([width, height])


def at(maps: Tensor, points: Tensor) -> Tensor:
    """Maps [M,1,h,w], each at points of its own [M,P,2]: [M,P]."""
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


class UsualStep(step.Step):
    """With whole masks."""

    def __init__(self, options: step.Options, groups: int) -> None:
        super().__init__(options, groups)
        recipe: Any = self.model.recipe
        self.criterion = SetCriterion(recipe.terms(), recipe.match, WholeMasks(recipe.num_samples))


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    common = {
        name: getattr(options, name)
        for name in ("model", "side", "batch", "objects", "rounds", "threads")
    }
    settings, most = step.Options(**common), options.groups
    kinds: dict[str, Callable[[], step.Step]] = {
        "K = 1": partial(step.Step, settings, 1),
        f"K = {most}": partial(step.Step, settings, most),
        f"K = {most}, a group at a time": partial(step.ChunkedStep, settings, most, 1),
    }
    if options.usual:
        kinds |= {f"K = {k}, whole masks": partial(UsualStep, settings, k) for k in (1, most)}
    steps = {name: make() for name, make in kinds.items()}
    rounds = measure.interleaved(steps, options.rounds)
    rows = {
        name: {
            "step, ms": rounds.ms(name),
            "ratio": rounds.ratio(name, to="K = 1"),
            "kept, MiB": measure.kept_for_backward(run, run.model.parameters()),
            **step.peak(kinds[name], run),
        }
        for name, run in steps.items()
    }
    measure.show(options, rows, options.out)


if __name__ == "__main__":
    main(tyro.cli(Options))
