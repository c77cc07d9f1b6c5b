"""Say what you see: from a query to a class and a box, or a mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.linear import Linear
from groupdetr.masks import Masks
from groupdetr.mlp import MLP
from groupdetr.ops.boxes import inverse_sigmoid
from groupdetr.structures import Memory, PixelMemory, Predictions


class BoxHead(nn.Module):
    """Queries [...,N,C] and their reference [...,N,R] -> `Predictions`. The box is told relative to the reference.

    ``eps`` is that of `inverse_sigmoid`.
    """

    PRIOR = 0.01  # the score of every class before training (focal loss, Lin et al. 2017, Sec. 3.3)

    def __init__(self, channels: int, num_classes: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.classify = Linear(channels, num_classes)
        self.regress = MLP(channels, channels, 4, num_layers=3)
        nn.init.constant_(self.classify.bias, -math.log((1 - self.PRIOR) / self.PRIOR))
        nn.init.zeros_(self.regress.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.regress.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, reference: Tensor, memory: Memory) -> Predictions:
        del memory
        return Predictions(self.classify(x), self.box(x, reference))

    def box(self, x: Tensor, reference: Tensor) -> Tensor:
        """[...,N,4]"""
        start = inverse_sigmoid(reference.float(), self.eps)
        start = F.pad(start, (0, 4 - start.shape[-1]))  # a point says nothing about the size
        return (self.regress(x) + start).sigmoid()


class MaskHead(nn.Module):
    """Queries [...,N,C] -> `Predictions`: a class or, in the last logit, none, and the embedding of a mask."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classify, self.nothing = Linear(channels, num_classes), Linear(channels, 1)
        self.embed = MLP(channels, channels, channels, num_layers=3)

    def forward(self, x: Tensor, reference: Tensor, memory: PixelMemory) -> Predictions:
        del reference
        logits = torch.cat([self.classify(x), self.nothing(x)], dim=-1)
        return Predictions(logits, masks=Masks(self.embed(x), memory.canvas))
