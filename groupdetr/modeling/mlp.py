"""MLP and feed-forward network, which process every query, token or box independently."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.linear import Linear
from groupdetr.modeling.module_list import ModuleList


class MLP(nn.Module):
    """``num_layers`` linear layers with ReLU between them: [...,in] -> [...,out]."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_channels, *[hidden] * (num_layers - 1), out_channels]
        self.layers: ModuleList[Linear] = ModuleList(Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)

    @torch.no_grad()
    def init_kaiming(self) -> None:
        """Kaiming initialisation (He et al. 2015): torch's default weights times sqrt(6).

        The variance of the output then equals that of the input. Biases become zero.
        """
        for layer in self.layers:
            layer.weight.mul_(math.sqrt(6))
            nn.init.zeros_(layer.bias)

    def init_constant(self, value: float) -> None:
        """Initialise the last layer so that the output is ``value`` for every input."""
        self.init_last_layer_zero()
        nn.init.constant_(self.layers[-1].bias, value)

    def init_last_layer_zero(self) -> None:
        """Initialise the last layer so that the output is zero for every input."""
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)


class FeedForward(nn.Module):
    """The transformer's two-layer feed-forward network: [...,C] -> [...,C]."""

    def __init__(
        self, channels: int, hidden: int, dropout: float, activation: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.expand = Linear(channels, hidden)
        self.contract = Linear(hidden, channels)
        self.activation = activation or nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(self.dropout(self.activation(self.expand(x))))
