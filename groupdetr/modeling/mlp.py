"""Thinking alone: the two networks that treat every query, token or box by itself."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.linear import Linear


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them: [...,in] -> [...,out]."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_channels, *[hidden] * (num_layers - 1), out_channels]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)

    @torch.no_grad()
    def start_as_loud(self) -> None:
        """Say things as loud as they come in (He et al. 2015): torch's own start, in which every layer says them at a
        sixth of their power, times the root of that. No bias."""
        for layer in self.layers:
            layer.weight.mul_(math.sqrt(6))  # type: ignore[operator]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def start_at(self, value: float) -> None:
        """Say the same of everything at first."""
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.constant_(self.layers[-1].bias, value)  # type: ignore[arg-type]


class FeedForward(nn.Module):
    """The transformer's two-layer network: [...,C] -> [...,C]."""

    def __init__(
        self, channels: int, hidden: int, dropout: float, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.expand, self.contract = Linear(channels, hidden), Linear(hidden, channels)
        self.activation, self.dropout = activation or nn.ReLU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(x))))
