from __future__ import annotations

import pytest
import torch

from groupdetr.criterion.boxes import L1, GIoU
from groupdetr.criterion.classification import Focal
from groupdetr.criterion.criterion import SetCriterion, mean_over_ranks
from groupdetr.groups import match_groups
from groupdetr.structures.outputs import Outputs
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.queries import Queries
from groupdetr.structures.targets import Target


def outputs(groups: int = 2, queries: int = 4) -> Outputs:
    torch.manual_seed(0)
    axes = (2, groups, queries)
    layers = [
        Predictions(torch.randn(*axes, 3), torch.rand(*axes, 4) * 0.4 + 0.2) for _ in range(3)
    ]
    return Outputs(
        layers, Queries(torch.zeros(*axes, 8), torch.zeros(*axes, 2), torch.zeros(*axes, 8))
    )


def targets(*counts: int) -> list[Target]:
    return [
        Target(torch.zeros(n, dtype=torch.int64), torch.full((n, 4), 0.3) + 0.1 * torch.rand(n, 4))
        for n in counts
    ]


def criterion(focal: float = 2.0) -> SetCriterion:
    return SetCriterion([Focal(2.0, focal), L1(5.0, 5.0), GIoU(2.0, 2.0)], match_groups)


def test_every_layer_is_supervised_by_every_term() -> None:
    losses = criterion()(outputs(), targets(2, 1))
    assert list(losses) == [
        f"layer{i}/{term}" for term in ("focal", "l1", "giou") for i in range(3)
    ]


def test_layers_are_matched_each_on_its_own() -> None:
    said, wanted = outputs(), targets(2, 1)
    together = criterion()(said, wanted)
    for i, layer in enumerate(said.layers):
        alone = criterion()(Outputs([layer], said.queries), wanted)
        for term in ("focal", "l1", "giou"):
            assert together[f"layer{i}/{term}"].item() == pytest.approx(
                alone[f"layer0/{term}"].item(), rel=1e-6
            )


def test_the_loss_weight_scales_its_loss_and_no_other() -> None:
    one, three = (criterion(weight)(outputs(), targets(2, 1)) for weight in (1.0, 3.0))
    for name in one:
        assert three[name].item() == pytest.approx(
            (3 if "focal" in name else 1) * one[name].item(), rel=1e-6
        )


def test_losses_are_divided_by_the_objects_that_are_told() -> None:
    """Of an optimizer step that several batches share, or of all ranks."""
    own, told = (criterion()(outputs(), targets(2, 1), mean) for mean in (None, torch.tensor(12.0)))
    for name in own:
        assert told[name].item() == pytest.approx(own[name].item() * 3 / 12, rel=1e-6)


def test_a_batch_costs_what_its_images_cost_alone() -> None:
    """That an image is laid beside a more crowded one changes no match and no loss."""
    said, wanted, one = outputs(), targets(2, 4), torch.tensor(1.0)
    both = criterion()(said, wanted, one)
    parts = [
        Outputs([layer[row : row + 1] for layer in said.layers], said.queries) for row in (0, 1)
    ]
    alone = [criterion()(part, [target], one) for part, target in zip(parts, wanted)]
    for name in both:
        assert both[name].item() == pytest.approx(
            alone[0][name].item() + alone[1][name].item(), rel=1e-5
        )


def test_one_process_is_its_own_mean() -> None:
    assert mean_over_ranks(torch.tensor(5.0)) == 5
