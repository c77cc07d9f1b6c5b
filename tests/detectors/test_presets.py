"""The presets are the published detectors, down to the number of their parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import groupdetr
from groupdetr.errors import UsageError
from groupdetr.experiments import EXPERIMENTS, FIG8
from groupdetr.modeling.queries.proposals import MixedProposals

COUNTS = {  # K = 1, those that learn, K = 11; of the official code, R50 and DC5 alike
    **dict.fromkeys(
        ("conditional-detr-r50", "conditional-detr-r50-dc5"), (43_418_401, 43_196_001, 44_186_401)
    ),
    **dict.fromkeys(("dab-detr-r50", "dab-detr-r50-dc5"), (43_671_517, 43_449_117, 43_683_517)),
    **dict.fromkeys(("dn-detr-r50", "dn-detr-r50-dc5"), (43_694_977, 43_472_577, 43_706_977)),
    "dab-deformable-detr-r50": (47_405_994, 47_183_594, 48_185_994),
    "dino-4scale-r50": (46_893_182, 46_670_782, 51_420_212),
    "dino-4scale-swin-l": (217_230_066, 217_230_066, 221_757_096),
    "mask2former-r50": (43_970_257, 43_970_257, 44_482_257),
    "petr-v99": (81_664_736, 81_664_736, 81_691_736),
    "petrv2-v99": (85_116_740, 85_116_740, 85_143_740),
}


@pytest.mark.parametrize("preset", COUNTS)
def test_parameter_counts_are_those_of_the_official_code(preset: str) -> None:
    with torch.device("meta"):
        one, many = (groupdetr.create_model(preset, num_groups=groups) for groups in (1, 11))
    counts = [sum(p.numel() for p in model.parameters()) for model in (one, many)]
    learning = sum(p.numel() for p in one.parameters() if p.requires_grad)
    assert (counts[0], learning, counts[1]) == COUNTS[preset]


def test_the_trainings_of_figure_8_are_presets_and_experiments() -> None:
    for variant in FIG8:
        assert variant.preset in EXPERIMENTS
    reported = {
        name.split("/")[1]: EXPERIMENTS[name].reported
        for name in EXPERIMENTS
        if name.startswith("fig8/")
    }
    assert [reported[name] for name in ("none", "dn", "group", "dn-group")] == [
        v.reported for v in FIG8
    ]


def test_the_dc5_preset_of_dab_detr_has_the_temperature_of_its_checkpoint() -> None:
    """The other published dense checkpoints have 20."""
    temperatures = {
        name: getattr(EXPERIMENTS[name].recipe, "temperature", None)
        for name in EXPERIMENTS
        if "/" not in name
    }
    assert temperatures["dab-detr-r50-dc5"] == 10.0
    assert {temperatures[name] for name in ("dab-detr-r50", "dn-detr-r50", "dn-detr-r50-dc5")} == {
        20.0
    }
    assert {temperatures[name] for name in ("conditional-detr-r50", "dab-deformable-detr-r50")} == {
        10000.0
    }


def test_proposal_heads_and_contents_of_every_group_start_by_xaviers_rule() -> None:
    """As in the official code, where each is a matrix of its own: uniform within sqrt(6 / (rows + columns))."""
    model = groupdetr.create_model("dino-tiny", num_groups=3)
    (proposals,) = (module for module in model.modules() if isinstance(module, MixedProposals))
    for table in (proposals.heads.project.weight, proposals.embedding):
        bound = (6 / (table.shape[1] + table.shape[2])) ** 0.5
        for matrix in table:
            assert 0.98 * bound < matrix.abs().max() <= bound


PRESETS = [name for name in EXPERIMENTS if "/" not in name]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_for_the_backbone_is_opened_or_refused(preset: str, tmp_path: Path) -> None:
    with torch.device("meta"), pytest.raises((ValueError, UsageError)):
        groupdetr.create_model(preset, pretrained_backbone=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_decoder_without_layers_is_refused(preset: str) -> None:
    with pytest.raises(ValueError, match="decoder_layers must be at least 1, not 0"):
        groupdetr.create_model(preset, decoder_layers=0)
