"""The presets are the published detectors, down to the number of their parameters."""

from __future__ import annotations

import pytest
import torch

import groupdetr
from groupdetr.experiments import EXPERIMENTS, FIG8

COUNTS = {  # K = 1, those that learn, K = 11; of the official code, R50 and DC5 alike
    "conditional-detr": (43_418_401, 43_196_001, 44_186_401),
    "dab-detr": (43_671_517, 43_449_117, 43_683_517),
    "dn-detr": (43_694_977, 43_472_577, 43_706_977),
}


@pytest.mark.parametrize("backbone", ["r50", "r50-dc5"])
@pytest.mark.parametrize("family", COUNTS)
def test_parameter_counts_are_those_of_the_official_code(family: str, backbone: str) -> None:
    with torch.device("meta"):
        one, many = (groupdetr.create_model(f"{family}-{backbone}", num_groups=groups) for groups in (1, 11))
    counts = [sum(p.numel() for p in model.parameters()) for model in (one, many)]
    learning = sum(p.numel() for p in one.parameters() if p.requires_grad)
    assert (counts[0], learning, counts[1]) == COUNTS[family]


def test_the_trainings_of_figure_8_are_presets_and_experiments() -> None:
    for variant in FIG8:
        assert variant.preset in EXPERIMENTS
    reported = {name.split("/")[1]: EXPERIMENTS[name].reported for name in EXPERIMENTS if name.startswith("fig8/")}
    assert [reported[name] for name in ("none", "dn", "group", "dn-group")] == [v.reported for v in FIG8]


def test_the_dc5_preset_of_dab_detr_has_the_temperature_of_its_checkpoint() -> None:
    """The other published dense checkpoints have 20."""
    temperatures = {name: EXPERIMENTS[name].recipe.temperature for name in EXPERIMENTS if "/" not in name}  # type: ignore[attr-defined]
    assert temperatures["dab-detr-r50-dc5"] == 10.0
    assert {temperatures[name] for name in ("dab-detr-r50", "dn-detr-r50", "dn-detr-r50-dc5")} == {20.0}
    assert {temperatures[name] for name in ("conditional-detr-r50", "conditional-detr-r50-dc5")} == {10000.0}
