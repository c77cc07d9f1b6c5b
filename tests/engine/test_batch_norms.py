"""Trained batch norms, which LW-DETR's projector has: what they change, and how to fix them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from groupdetr.engine.batch_norms import synchronise_batch_norms
from groupdetr.engine.optimizer import create_optimizer
from groupdetr.errors import UsageError
from groupdetr.modeling.detr import DetectionTransformer
from groupdetr.modeling.frozen import trained_batch_norms
from groupdetr.registry import create_model
from groupdetr.settings import Settings
from tests.runs import grad_norms_by_step, losses_by_step, train

FIELDS = {
    "strides": [8],
    "vit_width": 24,
    "vit_depth": 2,
    "vit_heads": 2,
    "num_windows": 2,
    "global_blocks": [1],
    "map_blocks": [0, 1],
    "channels": 32,
    "num_heads": 2,
    "cross_attention_heads": 2,
    "dim_feedforward": 32,
    "decoder_layers": 2,
    "num_queries": 8,
}


def small_lw_detr(**fields: bool) -> DetectionTransformer:
    torch.manual_seed(0)
    return create_model("lw-detr-tiny", num_groups=2, **FIELDS, **fields)


def train_small(data: Path, out: Path, *options: str, freeze_norms: bool) -> Path:
    fields = [f"{name}={value}".replace(" ", "") for name, value in FIELDS.items()]
    fields.append(f"freeze_norms={freeze_norms}".lower())
    settings = ("--steps", "2", "--batch", "4", "--multi-scale", "off", "--augment", "flip")
    model = ("--model", "lw-detr-tiny", "--set", *fields)
    return train(data, out, *model, *settings, *options)


def test_micro_batches_change_nothing_with_fixed_batch_norms(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train_small(shapes, tmp_path / "whole", freeze_norms=True)
    options = ("--accumulate", "2")
    divided = train_small(shapes, tmp_path / "divided", *options, freeze_norms=True)
    for step, losses in losses_by_step(whole).items():
        assert losses_by_step(divided)[step] == pytest.approx(losses, rel=1e-4)
    assert grad_norms_by_step(divided) == pytest.approx(grad_norms_by_step(whole), rel=1e-3)
    assert "batch norms" not in capsys.readouterr().out


def test_a_training_says_that_micro_batches_change_its_trained_batch_norms(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train_small(shapes, tmp_path / "whole", freeze_norms=False)
    assert "batch norms" not in capsys.readouterr().out
    divided = train_small(shapes, tmp_path / "divided", "--accumulate", "2", freeze_norms=False)
    output = " ".join(capsys.readouterr().out.split())
    assert "8 batch norms of the encoder are trained, with the statistics of 2 images" in output
    assert "--set freeze_norms=true" in output
    assert losses_by_step(divided)[1] != pytest.approx(losses_by_step(whole)[1], rel=1e-4)


def test_fixed_batch_norms_are_not_changed_by_a_training_step() -> None:
    """They have the same names in a weights file as trained ones."""
    model = small_lw_detr(freeze_norms=True).train()
    assert trained_batch_norms(model) == []
    assert model.state_dict().keys() == small_lw_detr().state_dict().keys()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [{name: value.clone() for name, value in norm.state_dict().items()} for norm in norms]
    optimizer = create_optimizer(model, Settings(weight_decay=0.1))
    images = model.recipe.example_images(32)
    model(images).layers[-1].logits.square().sum().backward()
    optimizer.step()
    for norm, values in zip(norms, before, strict=True):
        for name, value in norm.state_dict().items():
            assert torch.equal(value, values[name])
    assert len(norms) == 8


def test_trained_batch_norms_are_synchronised_on_gpus_and_refused_on_a_cpu() -> None:
    """An optimizer that was made before still has their parameters."""
    model = small_lw_detr()
    parameters = dict(model.named_parameters())
    with pytest.raises(UsageError, match="cannot synchronise") as error:
        synchronise_batch_norms(model, torch.device("cpu"))
    assert "--set freeze_norms=true" in error.value.remedy
    synchronise_batch_norms(model, torch.device("cuda"))
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 8
    assert all(value is parameters[name] for name, value in model.named_parameters())
    synchronise_batch_norms(small_lw_detr(freeze_norms=True), torch.device("cpu"))
