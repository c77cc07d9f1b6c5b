"""The moving average of the weights: its decay rises over the first updates, if it is to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from groupdetr.engine.optimizer import MovingAverage, create_ema


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def take_steps(model: nn.Module, average: MovingAverage, first: int, last: int) -> None:
    """Change the weights of a model as a training would, and update the average."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        model(torch.randn(8, 3, generator=generator))  # It moves the statistics of the norm.
        average.update_parameters(model)


def test_with_a_warm_up_update_n_has_the_decay_of_rf_detr() -> None:
    """The average begins with the weights before the first step, and buffers are averaged, too."""
    model = network()
    average = create_ema(model, 0.993, warmup=5)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for update in range(1, 31):
        take_steps(model, average, update, update + 1)
        decay = 0.993 * (1 - math.exp(-update / 5))
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    # A number of batches is no average.
    assert average.module.get_buffer("1.num_batches_tracked") == 30


@pytest.mark.parametrize("warmup", [None, 5])
def test_a_resumed_average_goes_on_with_the_same_decay(warmup: int | None) -> None:
    model = network()
    average = create_ema(model, 0.9, warmup)
    take_steps(model, average, 0, 4)
    weights = model.state_dict()
    saved_model = {name: value.clone() for name, value in weights.items()}
    saved = {name: value.clone() for name, value in average.state_dict().items()}
    take_steps(model, average, 4, 8)

    resumed_model = network()
    resumed = create_ema(resumed_model, 0.9, warmup)
    resumed_model.load_state_dict(saved_model)
    resumed.load_state_dict(saved)
    take_steps(resumed_model, resumed, 4, 8)
    for name, value in average.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
