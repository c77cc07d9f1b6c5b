"""Initialisation of MLPs."""

from __future__ import annotations

import pytest
import torch

from groupdetr.modeling.mlp import MLP


def test_kaiming_initialisation_preserves_the_mean_square() -> None:
    """It doubles it, because the first layer's input has no ReLU, which would have halved it."""
    torch.manual_seed(0)
    mlp, x = MLP(256, 512, 256, num_layers=3), torch.randn(2000, 256)
    default = mlp(x).detach().square().mean()
    assert default < 0.1
    mlp.init_kaiming()
    assert float(mlp(x).detach().square().mean()) == pytest.approx(2.0, rel=0.2)
