"""Frozen parts: what ``--freeze`` keeps, leaves out and refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import split
from typing import Any

import pytest
import torch
from torch import Tensor

import groupdetr
from groupdetr.cli.main import main
from groupdetr.engine.optimizer import create_ema
from groupdetr.errors import UsageError
from groupdetr.modeling.detr import part_of
from groupdetr.registry import experiment
from groupdetr.settings import PARTS, Settings
from tests.runs import (
    is_identical,
    load_checkpoint,
    losses_by_step,
    torchrun,
    train,
    train_arguments,
)


class FirstWeights(groupdetr.Callback):
    """Keeps the weights that a training begins with."""

    state: dict[str, Tensor]

    def on_train_start(self, trainer: Any) -> None:
        self.state = {name: x.clone() for name, x in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    ("model", "frozen"),
    [
        ("conditional-detr-tiny", ("backbone", "encoder")),
        ("dino-tiny", ("queries",)),
        ("mask2former-tiny", ("decoder", "heads")),
    ],
)
def test_frozen_parts_are_the_same_bit_for_bit_and_all_others_are_trained(
    shapes: Path, tmp_path: Path, model: str, frozen: tuple[Any, ...]
) -> None:
    first = FirstWeights()
    run = groupdetr.train(
        shapes,
        model=model,
        groups=2,
        out=tmp_path / "run",
        freeze=frozen,
        set={"num_queries": 8},
        steps=2,
        batch=4,
        imgsz=48,
        lr=1e-2,
        backbone_lr=1e-2,
        ema=0.5,
        workers=0,
        device="cpu",
        callbacks=[first],
    )
    checkpoint = load_checkpoint(run.path)
    trained = set(checkpoint["optimizer_parameters"])
    changed = {part_of(name) for name, x in checkpoint["model"].items() if differs(x, first, name)}
    assert changed == set(PARTS) - set(frozen)
    assert {part_of(name) for name in trained} == set(PARTS) - set(frozen)
    assert len(checkpoint["optimizer"]["state"]) <= len(trained)
    averaged = checkpoint["ema"]
    for name, x in checkpoint["model"].items():
        if part_of(name) in frozen:
            assert torch.equal(averaged[f"module.{name}"], x)


def differs(x: Tensor, first: FirstWeights, name: str) -> bool:
    return not torch.equal(x, first.state[name])


@pytest.mark.parametrize(
    "name",
    [
        *("conditional-detr-tiny", "dino-tiny", "mask2former-tiny", "petrv2-tiny"),
        "rf-detr-seg-micro",
    ],
)
def test_frozen_parts_draw_no_dropout_and_all_groups_are_still_trained(name: str) -> None:
    recipe = experiment(name).recipe.with_options(num_groups=3, dropout=0.5)
    if hasattr(recipe, "grid_mask"):
        recipe = recipe.with_options(grid_mask=0.0)  # an augmentation of the images
    model = recipe.build()
    model.freeze(["backbone", "encoder", "decoder", "queries"])
    model.train()
    images = recipe.example_images(64)
    first, second = (model(images).layers[-1].logits for _ in range(2))
    assert first.shape[1] == 3
    assert torch.equal(first, second)
    assert model.training
    assert model.decoder.heads.training, "only the heads are trained"


def test_the_moving_average_shares_the_frozen_parameters_and_averages_the_others_exactly() -> None:
    model = experiment("conditional-detr-tiny").recipe.build()
    model.freeze(["backbone", "encoder"])
    average = create_ema(model, 0.75)
    before: dict[str, Tensor] = {}
    for step in range(3):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 1
        average.update_parameters(model)
        for name, parameter in model.named_parameters():
            ours = average.module.get_parameter(name)
            if not parameter.requires_grad:
                assert ours is parameter
                continue
            expected = parameter if step == 0 else before[name].lerp(parameter, 0.25)
            assert torch.equal(ours, expected)
            before[name] = ours.detach().clone()


def test_a_run_with_frozen_parts_resumes_bit_for_bit(shapes: Path, tmp_path: Path) -> None:
    options = split("--steps 4 --ema 0.9 --set dropout=0.1 num_queries=8 --freeze backbone encoder")
    uninterrupted = train(shapes, tmp_path / "uninterrupted", *options)
    run = train(shapes, tmp_path / "run", *options, "--stop-after", "2")
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run), load_checkpoint(uninterrupted))


def test_a_frozen_part_can_be_trained_after_a_resume(shapes: Path, tmp_path: Path) -> None:
    options = split("--steps 4 --ema 0.9 --freeze encoder --backbone-lr 1e-3 --stop-after 2")
    run = train(shapes, tmp_path / "run", *options)
    before = load_checkpoint(run)
    assert main(["train", "--resume", str(run), "--freeze", "backbone", "--stop-after", "4"]) == 0
    after = load_checkpoint(run)
    assert parts_that_differ(before["model"], after["model"]) == set(PARTS) - {"backbone"}


def parts_that_differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {part_of(name) for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.slow
def test_two_processes_train_with_frozen_parts_as_one_does(shapes: Path, tmp_path: Path) -> None:
    options = split("--steps 3 --freeze backbone encoder")
    alone = train(shapes, tmp_path / "alone", *options)
    together = tmp_path / "together"
    outcome = torchrun(2, train_arguments(shapes, together, *options))
    assert outcome.returncode == 0, outcome.stderr
    for step, losses in losses_by_step(alone).items():
        assert losses_by_step(together)[step] == pytest.approx(losses, rel=1e-4)
    names = load_checkpoint(together)["optimizer_parameters"]
    assert {part_of(name) for name in names} == {"decoder", "queries", "heads"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [(["neck"], "freeze must be a list of"), (PARTS, "everything is frozen"), (3, "freeze must")],
)
def test_settings_refuse_unknown_parts_and_all_of_them(parts: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(freeze=parts)


@pytest.mark.parametrize("parts", ["encoder", ["heads", "encoder", "heads"], ("encoder", "heads")])
def test_the_order_of_parts_does_not_matter(parts: str | Sequence[str]) -> None:
    settings = Settings(freeze=parts)  # type: ignore[arg-type]
    assert settings.freeze in (("encoder",), ("encoder", "heads"))
    flags = settings.as_flags()
    position = flags.index("--freeze")
    assert flags[position + 1 : position + 1 + len(settings.freeze)] == [*settings.freeze]


def test_a_model_refuses_parts_that_it_does_not_have_and_to_have_nothing_to_train() -> None:
    model = experiment("conditional-detr-tiny").recipe.build()
    with pytest.raises(UsageError, match="'neck' of this model does not exist") as unknown:
        model.freeze(["neck"])
    assert "backbone, encoder, decoder" in (unknown.value.remedy or "")
    model.encoder.requires_grad_(False)
    with pytest.raises(UsageError, match="everything is frozen"):
        model.freeze(["backbone", "decoder", "queries", "heads"])
    assert any(parameter.requires_grad for parameter in model.parameters()), "nothing was changed"


def test_a_frozen_backbone_with_random_weights_is_noted(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(shapes, tmp_path / "run", "--steps", "1", "--freeze", "backbone")
    output = capsys.readouterr().out
    assert "--weights-of backbone" in output
    assert "M frozen" in output
