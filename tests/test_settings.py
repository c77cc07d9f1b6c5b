"""The settings of a training: ranges, drops in epochs, and options that do not act together."""

from __future__ import annotations

import dataclasses
import math
from itertools import product
from typing import Any

import pytest
import torch

from groupdetr.engine.optimizer import set_learning_rates
from groupdetr.errors import UsageError
from groupdetr.modeling import detr
from groupdetr.settings import DEFAULT_LR_DROP, KINDS, PARTS, Settings, with_changes

ODD_VALUES = (-1, -1.5, 0, 2.5, math.nan, math.inf, 2**70, True, "x", [1], {}, object())


def rate(settings: Settings, progress: float, step: int = 0) -> float:
    """Return the learning rate at a fraction of the training."""
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [parameter], "part": "rest", "factor": 1.0}], lr=1.0)
    return set_learning_rates(optimizer, settings, step, progress) / settings.lr


def test_a_drop_above_1_is_an_epoch_as_in_the_scripts_of_detr() -> None:
    settings = Settings(epochs=50, lr_drop=(40.0,))
    rates = [rate(settings, epoch / 50) for epoch in (0, 39, 41, 49)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


def test_drops_that_never_happen_are_refused() -> None:
    refused: list[dict[str, Any]] = [
        {"lr_drop": math.nan},
        {"lr_drop": -1.0},
        {"lr_drop": 0.0},
        {"lr_drop": 1.0},
        {"epochs": 50, "lr_drop": 50.0},
        {"steps": 100, "lr_drop": 40.0},
        {"minutes": 10.0, "lr_drop": 40.0},
        {"schedule": "cosine", "lr_drop": 0.5},
        {"lr_drop": "0.5"},
    ]
    for options in refused:
        with pytest.raises(UsageError, match="lr-drop"):
            Settings(**options)


def test_a_refused_drop_names_the_fraction_to_write() -> None:
    with pytest.raises(UsageError) as refusal:
        Settings(steps=100, lr_drop=(40.0,))
    assert "--lr-drop 0.4" in refusal.value.remedy


def test_an_odd_value_of_a_setting_is_refused_or_has_the_type_of_the_field() -> None:
    names = [field.name for field in dataclasses.fields(Settings)]
    for name, value in product(names, ODD_VALUES):
        kind = KINDS[name]
        try:
            settings = Settings(**{name: value})
        except UsageError:
            continue
        accepted = getattr(settings, name)
        assert isinstance(accepted, (int, float) if kind.type is float else kind.type)
        if isinstance(accepted, float):
            assert math.isfinite(accepted)


def test_values_that_no_training_can_have_are_refused_with_the_name_of_the_option() -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        *(("seed", {"seed": seed}) for seed in (-1, 2**70, 1.5)),
        *(("layer-decay", {"layer_decay": value}) for value in (0.0, -0.5, 1.5, math.nan)),
        ("batch", {"batch": 0}),
        ("batch", {"batch": 5, "accumulate": 2}),
        ("epochs", {"epochs": -1.0}),
        ("lr", {"lr": math.nan}),
        ("ema", {"ema": 1.0}),
        ("instability-images", {"instability_images": -1}),
        ("group-chunk", {"group_chunk": 0}),
    ]
    for option, values in refused:
        with pytest.raises(UsageError, match=option):
            Settings(**values)


def test_the_parts_of_the_settings_are_those_of_the_model() -> None:
    assert detr.PARTS == PARTS


def test_a_given_length_replaces_the_former_one_and_two_lengths_are_refused() -> None:
    settings = with_changes(Settings(steps=100, epochs=9), {"epochs": 3})
    assert (settings.epochs, settings.steps) == (3, None)
    assert with_changes(Settings(minutes=1), {"steps": 5}).minutes is None
    with pytest.raises(UsageError, match="--epochs and --steps"):
        with_changes(Settings(), {"epochs": 3, "steps": 5})


def test_a_given_schedule_has_its_own_drops() -> None:
    settings = Settings(epochs=50, lr_drop=(0.8,))
    assert with_changes(settings, {"schedule": "cosine"}).lr_drop == DEFAULT_LR_DROP
    with pytest.raises(UsageError, match="no effect on the cosine schedule"):
        with_changes(settings, {"schedule": "cosine", "lr_drop": (0.5,)})


def test_a_warm_up_of_an_average_that_is_off_is_refused() -> None:
    with pytest.raises(UsageError, match="--ema-warmup 100 has no effect without --ema") as error:
        Settings(ema_warmup=100)
    assert "--ema-warmup None" in error.value.remedy
    assert Settings(ema=0.9, ema_warmup=100).ema_warmup == 100


def test_drops_in_epochs_stay_within_a_shorter_training() -> None:
    settings = Settings(epochs=50, lr_drop=(40.0,))
    assert with_changes(settings, {"epochs": 100}).lr_drop == (40.0,)
    assert with_changes(settings, {"epochs": 10}).lr_drop == (0.8,)
    assert with_changes(settings, {"steps": 100}).lr_drop == (0.8,)


@pytest.mark.parametrize("total", [12, 60, 1000])
def test_every_training_reaches_its_rate_within_a_third(total: int) -> None:
    settings = Settings(steps=total, warmup=100, schedule="step")
    rates = [rate(settings, step / total, step) for step in range(total)]
    assert rates == sorted(rates[: math.ceil(total / 3) + 1]) + rates[math.ceil(total / 3) + 1 :]
    assert max(rates[: math.ceil(total / 3) + 1]) == pytest.approx(1)


def test_a_warm_up_that_fits_is_not_changed() -> None:
    settings = Settings(steps=300, warmup=100)
    rates = [rate(settings, step / 300, step) for step in range(100)]
    expected = [(step + 1) / 100 for step in range(100)]
    assert rates == pytest.approx(expected, rel=1e-12)
