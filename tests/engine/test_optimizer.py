"""Learning rates and weight decay of every parameter, and their schedule."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from groupdetr.detectors.tiny import TinyConditionalDETR, TinyMask2Former
from groupdetr.engine.optimizer import create_optimizer, set_learning_rates
from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.vit import HUGE, ViTSizes, vit_huge
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.settings import Settings

TINY = ViTSizes(
    width=32, depth=4, num_heads=2, window=4, global_blocks=(1, 3), image=128, channels=24
)
SETTINGS = Settings(lr=1e-4, backbone_lr=1e-5, weight_decay=1e-4)
SETTINGS_WITH_LAYER_DECAY = Settings(lr=2e-4, backbone_lr=1e-4, weight_decay=1e-4, layer_decay=0.7)


@dataclass(frozen=True)
class ViTConditionalDETR(TinyConditionalDETR):
    """A detector whose backbone declares its layers."""

    sizes: ViTSizes = TINY

    def build_backbone(self) -> Backbone:
        return vit_huge(self.pretrained_backbone, self.recompute, self.sizes)


def rates_and_decays(
    model: DetectionTransformer, settings: Settings, step: int = 0
) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay of every trainable parameter, by its name."""
    optimizer = create_optimizer(model, settings)
    set_learning_rates(optimizer, settings, step, progress=0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    result = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            result[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return result


# parameter groups


def test_without_layers_the_backbone_is_one_group_and_the_rest_is_another() -> None:
    model = TinyConditionalDETR().build()
    groups = create_optimizer(model, SETTINGS).param_groups
    assert [group["part"] for group in groups] == ["rest", "backbone"]
    for name, rate_and_decay in rates_and_decays(model, SETTINGS).items():
        expected_rate = 1e-5 if name.startswith("backbone.") else 1e-4
        assert rate_and_decay == (expected_rate, 1e-4), name


def test_a_loaded_optimizer_has_the_saved_moments_and_the_rates_of_its_own_settings() -> None:
    model = TinyConditionalDETR().build()
    saved = create_optimizer(model, replace(SETTINGS, lr=3.0, backbone_lr=3.0))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    saved.step()
    loaded = create_optimizer(model, SETTINGS)
    loaded.load_state_dict(saved.state_dict())
    set_learning_rates(loaded, SETTINGS, step=0, progress=0.0)
    assert [group["lr"] for group in loaded.param_groups] == [1e-4, 1e-5]
    for parameter in model.parameters():
        assert torch.equal(loaded.state[parameter]["exp_avg"], saved.state[parameter]["exp_avg"])


def test_every_parameter_is_in_one_group_and_no_two_groups_are_alike() -> None:
    model = ViTConditionalDETR().build()
    groups = create_optimizer(model, SETTINGS_WITH_LAYER_DECAY).param_groups
    members = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(members) == sorted(trainable)
    keys = [(group["part"], group["factor"], group["weight_decay"]) for group in groups]
    # The rest and the feature pyramid; the patch embedding; every block and its norms.
    assert len(keys) == len(set(keys)) == 2 + 1 + 2 * TINY.depth


def test_mask2former_has_no_weight_decay_on_norms_queries_and_the_level_embedding() -> None:
    """As in its published configuration. The level embedding of the pixel decoder is decayed."""
    model = TinyMask2Former().build()
    by_name = rates_and_decays(model, Settings(weight_decay=0.05))
    decayed = {name for name, (_, decay) in by_name.items() if decay}
    undecayed = {name for name, _ in model.named_parameters()} - decayed
    embeddings = {"queries.embedding", "queries.position", "encoder.level_embed"}
    norms = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            norms |= {f"{name}.weight", f"{name}.bias"}
    assert undecayed == embeddings | norms
    assert {"encoder.encoder.level_embed", "decoder.heads.0.classify.bias"} <= decayed


def test_the_decoder_without_its_heads_may_have_a_rate_of_its_own() -> None:
    """Also zero. It does not change the rates of others."""
    model = TinyConditionalDETR().build()
    usual = rates_and_decays(model, SETTINGS)
    for rate in (7e-5, 0.0):
        by_name = rates_and_decays(model, replace(SETTINGS, decoder_lr=rate))
        changed = {name for name in by_name if by_name[name] != usual[name]}
        assert changed == set(model.parameters_by_part()["decoder"])
        assert {by_name[name] for name in changed} == {(rate, 1e-4)}


# layer decay


def test_the_rates_of_vit_huge_are_those_of_group_detr_v2() -> None:
    """Block i has 0.7 ** (32 - i) times the base rate of 1e-4.

    The patch embedding has 0.01 times that rate, the feature pyramid and the rest have the base
    rate.
    """
    settings = Settings(lr=1e-4, backbone_lr=1e-4, weight_decay=1e-4, layer_decay=0.7)
    with torch.device("meta"):
        model = ViTConditionalDETR(sizes=HUGE).build()
    assert len(create_optimizer(model, settings).param_groups) == 67
    for name, (rate, decay) in rates_and_decays(model, settings).items():
        block = re.match(r"backbone\.network\.vit\.blocks\.(\d+)\.(norm)?", name)
        factor = 1.0
        if block:
            factor = 0.7 ** (32 - int(block[1]))
        elif name.startswith("backbone.network.vit.patch_embed."):
            factor = 0.01
        is_norm_of_block = block is not None and block[2] is not None
        assert rate == pytest.approx(1e-4 * factor), name
        assert decay == (0.0 if is_norm_of_block else 1e-4), name


def test_warmup_multiplies_the_rates_of_layers() -> None:
    model = ViTConditionalDETR().build()
    settings = Settings(lr=1e-4, backbone_lr=1e-4, layer_decay=0.5, warmup=10)
    by_name = rates_and_decays(model, settings, step=4)
    rate, _ = by_name["backbone.network.vit.blocks.2.mlp.fc1.weight"]
    assert rate == pytest.approx(1e-4 * 0.5 * 0.5**2)


def test_without_layer_decay_all_blocks_have_one_rate_and_norms_have_no_weight_decay() -> None:
    model = ViTConditionalDETR().build()
    assert len(create_optimizer(model, SETTINGS).param_groups) == 3
    by_name = rates_and_decays(model, SETTINGS)
    backbone_rates = {rate for name, (rate, _) in by_name.items() if name.startswith("backbone.")}
    assert backbone_rates == {1e-5}
    assert by_name["backbone.network.vit.blocks.0.norm1.weight"] == (1e-5, 0.0)


def test_layer_decay_is_refused_for_a_backbone_without_layers() -> None:
    with pytest.raises(UsageError, match="declares its layers"):
        create_optimizer(TinyConditionalDETR().build(), SETTINGS_WITH_LAYER_DECAY)


# the schedule


def rates_of_all_steps(settings: Settings, num_steps: int) -> list[float]:
    """Return the learning rate of every step of a training."""
    group = {"params": [torch.zeros(1)], "part": "rest", "factor": 1.0}
    optimizer = torch.optim.SGD([group], lr=1.0)
    return [
        set_learning_rates(optimizer, settings, step, step / num_steps) for step in range(num_steps)
    ]


def test_by_default_the_rate_drops_to_a_tenth_at_epoch_11_of_12() -> None:
    rates = rates_of_all_steps(Settings(), 1200)
    assert rates[1099] == pytest.approx(1e-4)
    assert rates[1100] == pytest.approx(1e-5)


def test_warmup_rises_linearly_and_the_cosine_schedule_falls_to_nearly_zero() -> None:
    rates = rates_of_all_steps(Settings(schedule="cosine", warmup=10), 1000)
    assert rates[4] == pytest.approx(0.5e-4, rel=1e-3)
    assert rates[-1] < 1e-9


def test_the_rate_drops_at_every_share_of_lr_drop() -> None:
    settings = replace(SETTINGS, lr_drop=(0.5, 0.75))
    optimizer = create_optimizer(TinyConditionalDETR().build(), settings)
    rates = [
        set_learning_rates(optimizer, settings, step=100, progress=progress)
        for progress in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)
    ]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


@pytest.mark.parametrize("drops", [0.5, [0.5]], ids=["a number", "a list, as in config.yaml"])
def test_lr_drop_may_be_a_number_or_a_list(drops: Any) -> None:
    assert Settings(lr_drop=drops).lr_drop == (0.5,)
