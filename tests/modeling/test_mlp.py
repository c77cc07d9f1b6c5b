"""How networks start."""

from __future__ import annotations

import pytest
import torch

from groupdetr.modeling.mlp import MLP


def test_networks_that_start_as_loud_keep_the_power_of_what_goes_in() -> None:
    """Twice of it: their first layer reads no ReLU, which would have halved it."""
    torch.manual_seed(0)
    network, x = MLP(256, 512, 256, num_layers=3), torch.randn(2000, 256)
    quiet = network(x).detach().pow(2).mean()
    network.start_as_loud()
    assert quiet < 0.1
    assert float(network(x).detach().pow(2).mean()) == pytest.approx(2.0, rel=0.2)
