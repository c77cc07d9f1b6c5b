"""The presets are the published detectors: numbers of parameters, initialisation, and options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import groupdetr
from groupdetr.errors import UsageError
from groupdetr.experiments.by_name import EXPERIMENTS
from groupdetr.modeling.queries.proposals import MixedProposals
from groupdetr.paper.fig8 import ROWS

PRESETS = [name for name in EXPERIMENTS if "/" not in name]
ONE_OF_EVERY_CLASS = list({type(EXPERIMENTS[name].recipe): name for name in PRESETS}.values())

# Parameters with K = 1, trainable parameters with K = 1, and parameters with K = 11. With K = 1
# they are those of the official code, where R50 and DC5 have the same numbers.
CONDITIONAL_DETR = (43_418_401, 43_196_001, 44_186_401)
DAB_DETR = (43_671_517, 43_449_117, 43_683_517)
DN_DETR = (43_694_977, 43_472_577, 43_706_977)
COUNTS = {
    "conditional-detr-r50": CONDITIONAL_DETR,
    "conditional-detr-r50-dc5": CONDITIONAL_DETR,
    "dab-detr-r50": DAB_DETR,
    "dab-detr-r50-dc5": DAB_DETR,
    "dn-detr-r50": DN_DETR,
    "dn-detr-r50-dc5": DN_DETR,
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
        one_group = groupdetr.create_model(preset, num_groups=1)
        eleven_groups = groupdetr.create_model(preset, num_groups=11)
    count = sum(p.numel() for p in one_group.parameters())
    trainable = sum(p.numel() for p in one_group.parameters() if p.requires_grad)
    count_of_eleven = sum(p.numel() for p in eleven_groups.parameters())
    assert (count, trainable, count_of_eleven) == COUNTS[preset]


def test_the_trainings_of_figure_8_are_experiments() -> None:
    reported = [EXPERIMENTS[f"fig8/{row}"].reported for row in ROWS]
    assert reported == [35.2, 38.6, 39.1, 40.6]


def test_the_dc5_preset_of_dab_detr_has_the_temperature_of_its_checkpoint() -> None:
    """The other published checkpoints of DAB-DETR and DN-DETR have 20."""
    temperatures = {}
    for name in PRESETS:
        temperatures[name] = getattr(EXPERIMENTS[name].recipe, "temperature", None)
    assert temperatures["dab-detr-r50-dc5"] == 10.0
    for name in ("dab-detr-r50", "dn-detr-r50", "dn-detr-r50-dc5"):
        assert temperatures[name] == 20.0
    for name in ("conditional-detr-r50", "dab-deformable-detr-r50"):
        assert temperatures[name] == 10000.0


def test_proposal_heads_and_contents_of_every_group_are_initialised_by_xaviers_rule() -> None:
    """Each group's matrix is uniform within sqrt(6 / (rows + columns)).

    In the official code it is a matrix of its own.
    """
    model = groupdetr.create_model("dino-tiny", num_groups=3)
    (proposals,) = (module for module in model.modules() if isinstance(module, MixedProposals))
    for table in (proposals.heads.project.weight, proposals.embedding):
        bound = (6 / (table.shape[1] + table.shape[2])) ** 0.5
        for matrix in table:
            assert 0.98 * bound < matrix.abs().max() <= bound


def test_a_missing_backbone_file_is_an_error(tmp_path: Path) -> None:
    """Detectors whose backbone cannot load weights refuse the option; others open the file."""
    missing = str(tmp_path / "none.safetensors")
    for preset in ONE_OF_EVERY_CLASS:
        with torch.device("meta"), pytest.raises((ValueError, UsageError)):
            groupdetr.create_model(preset, pretrained_backbone=missing)


def test_a_decoder_without_layers_is_refused() -> None:
    for preset in ONE_OF_EVERY_CLASS:
        with pytest.raises(ValueError, match="decoder_layers must be at least 1, not 0"):
            groupdetr.create_model(preset, decoder_layers=0)
