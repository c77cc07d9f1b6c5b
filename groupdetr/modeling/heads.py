"""Say what you see: from a query to a class and a box, in the image or in space, or a mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.linear import Linear
from groupdetr.modeling.mlp import MLP
from groupdetr.ops.boxes import inverse_sigmoid
from groupdetr.ops.boxes3d import CENTRE, CODE, VELOCITY
from groupdetr.structures.masks import Masks
from groupdetr.structures.memory import Memory, PixelMemory
from groupdetr.structures.predictions import Predictions
from groupdetr.structures.scene_memory import SceneMemory

PRIOR = 0.01  # the score of every class before training (focal loss, Lin et al. 2017, Sec. 3.3)
LOW, HIGH = (
    (-51.2, -51.2, -5.0),
    (51.2, 51.2, 3.0),
)  # metres: x, y, z where objects in space are told


def start_rare(classify: nn.Linear) -> None:
    nn.init.constant_(classify.bias, -math.log((1 - PRIOR) / PRIOR))


class BoxHead(nn.Module):
    """Queries [...,N,C] and their reference [...,N,R] -> `Predictions`. The box is told relative to the reference.

    ``eps`` is that of `inverse_sigmoid`.
    """

    def __init__(self, channels: int, num_classes: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.classify = Linear(channels, num_classes)
        self.regress = MLP(channels, channels, 4, num_layers=3)
        start_rare(self.classify)
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


class SpaceHead(nn.Module):
    """Queries [...,N,C] and their reference [...,N,3] -> `Predictions` whose boxes are codes (`ops.boxes3d`).

    The centre is told relative to the reference, inside a space of 102.4 m by 102.4 m by 8 m. ``regress`` says
    [...,N,10]; ``eps`` is that of `inverse_sigmoid`.
    """

    where: Tensor  # the centre stands in a code
    low: Tensor
    extent: Tensor

    def __init__(self, channels: int, num_classes: int, regress: nn.Module, eps: float) -> None:
        super().__init__()
        self.think = nn.Sequential(
            Linear(channels, channels),
            nn.LayerNorm(channels),
            nn.ReLU(),
            Linear(channels, channels),
            nn.LayerNorm(channels),
            nn.ReLU(),
        )
        self.classify, self.regress, self.eps = Linear(channels, num_classes), regress, eps
        self.register_buffer("where", torch.tensor(CENTRE), persistent=False)
        self.register_buffer("low", torch.tensor(LOW), persistent=False)
        self.register_buffer("extent", torch.tensor(HIGH) - torch.tensor(LOW), persistent=False)
        start_rare(self.classify)

    def forward(self, x: Tensor, reference: Tensor, memory: SceneMemory) -> Predictions:
        del memory
        return Predictions(self.classify(self.think(x)), self.code(x, reference))

    def code(self, x: Tensor, reference: Tensor) -> Tensor:
        """[...,N,10]"""
        said = self.regress(x)
        start = inverse_sigmoid(reference.float(), self.eps)
        centre = (said[..., self.where] + start).sigmoid() * self.extent + self.low
        return said.to(centre.dtype).index_copy(-1, self.where, centre)


class MovingHead(SpaceHead):
    """Of images of two moments (PETRv2): what is said of motion is how far, and becomes how fast."""

    def forward(self, x: Tensor, reference: Tensor, memory: SceneMemory) -> Predictions:
        said = super().forward(x, reference, memory)
        still, moved = said.boxes.split([VELOCITY, CODE - VELOCITY], dim=-1)
        return said.of(
            said.logits, torch.cat([still, moved / memory.elapsed.view(-1, 1, 1, 1)], dim=-1)
        )


class SplitRegression(nn.Module):
    """Codes [...,10] by five networks, which share what they read (PETRv2): x and y; log w; log l, z and log h; the
    angle; the velocity. The published code calls the second and third otherwise, but this is what they say."""

    NUMBERS = (2, 1, 3, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = MLP(channels, channels, channels, num_layers=2)
        self.parts = nn.ModuleList(
            MLP(channels, channels, numbers, num_layers=2) for numbers in self.NUMBERS
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(x))
        return torch.cat([part(x) for part in self.parts], dim=-1)


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
