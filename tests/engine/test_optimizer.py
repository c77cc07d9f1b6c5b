"""Every parameter learns at its rate: the model's, the backbone's, or that of its layer in the backbone."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from groupdetr.detectors.tiny import TinyConditionalDETR, TinyMask2Former
from groupdetr.engine.optimizer import optimizer, set_rates
from groupdetr.errors import UsageError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.vit import HUGE, Sizes, vit_huge
from groupdetr.settings import Settings

TINY = Sizes(width=32, depth=4, num_heads=2, window=4, global_blocks=(1, 3), image=128, channels=24)
SETTINGS = Settings(lr=1e-4, backbone_lr=1e-5, weight_decay=1e-4)
LAYERED = Settings(lr=2e-4, backbone_lr=1e-4, weight_decay=1e-4, layer_decay=0.7)


@dataclass(frozen=True)
class OnViT(TinyConditionalDETR):
    """A detector whose backbone has layers."""

    sizes: Sizes = TINY

    def backbone(self) -> Backbone:
        return vit_huge(self.pretrained_backbone, self.recompute, self.sizes)


def treatment(
    model: nn.Module, settings: Settings, step: int = 0
) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of every parameter that learns, by its name."""
    found = optimizer(model, settings)
    set_rates(found, settings, step, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in found.param_groups
        for parameter in group["params"]
    }


def test_a_backbone_without_layers_is_one_group_and_the_rest_another() -> None:
    model = TinyConditionalDETR().build()
    groups = optimizer(model, SETTINGS).param_groups
    assert [group["part"] for group in groups] == ["rest", "backbone"]
    for name, treated in treatment(model, SETTINGS).items():
        assert treated == ((1e-5 if name.startswith("backbone.") else 1e-4), 1e-4), name


def test_the_state_of_an_optimizer_saved_by_an_older_version_is_read() -> None:
    model = TinyConditionalDETR().build()
    parts = {"rest": [], "backbone": []}  # type: ignore[var-annotated]
    for name, parameter in model.named_parameters():
        parts["backbone" if name.startswith("backbone.") else "rest"].append(parameter)
    older = torch.optim.AdamW(
        [{"params": params, "part": part} for part, params in parts.items()], lr=3.0
    )
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    older.step()
    newer = optimizer(model, SETTINGS)
    newer.load_state_dict(older.state_dict())
    set_rates(newer, SETTINGS, 0, 0.0)
    assert [group["lr"] for group in newer.param_groups] == [1e-4, 1e-5]
    for parameter in model.parameters():
        assert torch.equal(newer.state[parameter]["exp_avg"], older.state[parameter]["exp_avg"])


def test_every_parameter_is_in_one_group_and_groups_are_few() -> None:
    model = OnViT().build()
    found = optimizer(model, LAYERED)
    members = [id(parameter) for group in found.param_groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    keys = [(group["part"], group["factor"], group["weight_decay"]) for group in found.param_groups]
    assert (
        len(keys) == len(set(keys)) == 2 + 1 + 2 * TINY.depth
    )  # the rest, pyramid; patches; blocks and their norms


def test_vit_huge_learns_as_in_the_spec() -> None:
    """Base rate 1e-4: block i times 0.7 ** (32 - i), patches times 0.01, pyramid and the rest times 1."""
    settings = Settings(lr=1e-4, backbone_lr=1e-4, weight_decay=1e-4, layer_decay=0.7)
    with torch.device("meta"):
        model = OnViT(sizes=HUGE).build()
    assert len(optimizer(model, settings).param_groups) == 67
    for name, (rate, decay) in treatment(model, settings).items():
        block = re.match(r"backbone\.network\.vit\.blocks\.(\d+)\.(norm)?", name)
        patches = name.startswith("backbone.network.vit.patch_embed.")
        assert rate == pytest.approx(
            1e-4 * (0.7 ** (32 - int(block[1])) if block else 0.01 if patches else 1)
        ), name
        assert decay == (0.0 if block and block[2] else 1e-4), name


def test_warm_up_and_decay_are_on_top_of_the_layers_rates() -> None:
    model, settings = (
        OnViT().build(),
        Settings(lr=1e-4, backbone_lr=1e-4, layer_decay=0.5, warmup=10),
    )
    rate, _ = treatment(model, settings, step=4)["backbone.network.vit.blocks.2.mlp.fc1.weight"]
    assert rate == pytest.approx(1e-4 * 0.5 * 0.5**2)


def test_without_layer_decay_all_blocks_learn_alike_and_norms_are_spared_still() -> None:
    model = OnViT().build()
    assert len(optimizer(model, SETTINGS).param_groups) == 3
    treated = treatment(model, SETTINGS)
    assert {rate for name, (rate, _) in treated.items() if name.startswith("backbone.")} == {1e-5}
    assert treated["backbone.network.vit.blocks.0.norm1.weight"] == (1e-5, 0.0)


def test_layer_decay_is_refused_where_there_are_no_layers() -> None:
    with pytest.raises(UsageError, match="no layers"):
        optimizer(TinyConditionalDETR().build(), LAYERED)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_layer_decay_lies_between_0_and_1(value: float) -> None:
    with pytest.raises(UsageError, match="layer-decay"):
        Settings(layer_decay=value)


def test_a_detector_trains_with_layer_decay() -> None:
    """The fused optimizer moves the last block more than the first."""
    torch.manual_seed(0)
    model = OnViT(recompute=True).build().train()
    found = optimizer(model, LAYERED)
    set_rates(found, LAYERED, 0, 0.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    features = model.backbone(torch.randn(1, 3, 64, 64))
    torch.stack([x.square().sin().mean() for x in features]).sum().backward()
    found.step()
    moved = [
        (model.get_parameter(name) - before[name]).abs().mean().item()
        for name in (f"backbone.network.vit.blocks.{i}.mlp.fc1.weight" for i in range(TINY.depth))
    ]
    assert moved == sorted(moved)
    assert moved[-1] == pytest.approx(moved[0] / 0.7**3, rel=0.2)


def test_norms_and_queries_of_mask2former_are_not_decayed() -> None:
    """As its published configuration has it; the level embedding of the pixel decoder is decayed."""
    model = TinyMask2Former().build()
    settings = Settings(weight_decay=0.05)
    decayed = {name for name, (_, decay) in treatment(model, settings).items() if decay}
    spared = {name for name, _ in model.named_parameters()} - decayed
    embeddings = {"queries.embedding", "queries.position", "encoder.level"}
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for part in ("weight", "bias")
    }
    assert spared == embeddings | norms
    assert {"encoder.encoder.level", "decoder.heads.0.classify.bias"} <= decayed


def test_the_rate_drops_at_every_step_of_the_schedule() -> None:
    model = TinyConditionalDETR().build()
    settings = replace(SETTINGS, lr_drop=(0.5, 0.75))
    found = optimizer(model, settings)
    rates = [
        set_rates(found, settings, 100, progress) for progress in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)
    ]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


@pytest.mark.parametrize("drops", [0.5, [0.5]], ids=["of an older version", "of a file"])
def test_drops_are_read_as_files_have_them(drops: float | list[float]) -> None:
    assert Settings(lr_drop=drops).lr_drop == (0.5,)  # type: ignore[arg-type]
