"""Looking at a few points of every level: deformable attention (Deformable DETR, Zhu et al. 2021, Sec. 4.1).

A query says where to look, P points of each level for each head, and how much each counts. There is nothing to
compile: on CUDA devices the operation is a Triton kernel, elsewhere plain PyTorch, and `attending` chooses otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from groupdetr.groups import end_to_end
from groupdetr.modeling.attention.multihead import View
from groupdetr.modeling.linear import Linear
from groupdetr.structures.memory import Memory

Shapes = tuple[tuple[int, int], ...]  # (height, width) of every level, as in `Memory`
Attend = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]


def deformable_attention(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """Value [B,S,heads,C] at locations [B,Q,heads,L,P,2], weighted by [B,Q,heads,L,P] and summed: [B,Q,heads*C].

    Locations are x, y with the image in [0,1], bilinear between the centres of pixels; outside there are zeros. They
    need 32 bits even if value has 16: eight bits do not tell neighbouring pixels apart. Sums are made in 32 bits at
    least, and the result is of value's dtype. Between inputs and gradients nothing is kept but the inputs.
    """
    images, tokens, heads, _ = value.shape
    expected = (images, locations.shape[1], heads, len(shapes), locations.shape[4], 2)
    if locations.shape != expected or weights.shape != expected[:-1]:
        raise ValueError(
            f"locations {tuple(locations.shape)} and weights {tuple(weights.shape)} must be {expected}"
        )
    if sum(height * width for height, width in shapes) != tokens:
        raise ValueError(f"shapes {shapes} must add up to {tokens} tokens")
    attend = _chosen or (in_triton if value.is_cuda and _triton_is_there() else in_pytorch)
    return attend(value, shapes, locations, weights)


_chosen: Attend | None = None


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Within, `deformable_attention` is `in_pytorch` or `in_triton` whatever the device.

    ``with attending(in_pytorch): torch.export.export(model, ...)`` exports a model on a GPU without the kernel.
    """
    global _chosen
    before, _chosen = _chosen, attend
    try:
        yield
    finally:
        _chosen = before


@torch.compiler.assume_constant_result
@cache
def _triton_is_there() -> bool:
    if find_spec("triton"):
        return True
    warnings.warn(
        "Triton is not installed: deformable attention runs in plain PyTorch, several times slower. "
        "pip install triton, or attending(in_pytorch) to say that it shall.",
        stacklevel=3,
    )
    return False


def in_triton(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`deformable_attention` as a kernel, an opaque operation to torch.compile."""
    from groupdetr.modeling.attention import deformable_triton

    return deformable_triton.attend(
        value, [side for shape in shapes for side in shape], locations, weights
    )


def in_pytorch(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`deformable_attention` by grid_sample, on any device, for torch.compile and for export."""
    differentiable = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    return (_InPytorch.apply if differentiable else _seen)(value, shapes, locations, weights)


def _wide(*tensors: Tensor) -> torch.dtype:
    """At least 32 bits. (torch.promote_types would be a node of exported graphs.)"""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


# in PyTorch

CACHE = (
    2**18
)  # numbers that a CPU samples at once: 1 MiB, so that they are summed before they leave its cache


class _InPytorch(torch.autograd.Function):
    """Level by level, so that L*P samples never stand side by side; backward samples again instead of keeping them."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        return _seen(value, shapes, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        inputs = value, locations, weights = ctx.saved_tensors
        images, _, heads, _ = value.shape
        maps, grid, shares = _by_head(*inputs)
        grad = grad.to(maps.dtype).unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        blocks = [
            _sampled_backward(ctx.shapes, *block) for block in _blocks(maps, grid, shares, grad)
        ]
        by_map, by_grid, by_share = (
            torch.cat(x).unflatten(0, (images, heads)) for x in zip(*blocks)
        )
        by_value = by_map.permute(0, 3, 1, 2).to(value.dtype)
        by_locations = by_grid.permute(0, 4, 1, 2, 3, 5).mul(2).to(locations.dtype)
        return by_value, None, by_locations, by_share.permute(0, 4, 1, 2, 3).to(weights.dtype)


def _seen(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    images, _, heads, _ = value.shape
    seen = [_sampled(shapes, *block) for block in _blocks(*_by_head(value, locations, weights))]
    return (
        torch.cat(seen).unflatten(0, (images, heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)
    )


def _by_head(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B*heads,C,S], grid [B*heads,L,P,Q,2] in [-1,1], weights [B*heads,L,P,Q]: every head an image of its own.

    Queries come last, so that summing over points adds rows.
    """
    number = _wide(value, locations)
    maps = value.to(number).permute(0, 2, 3, 1).flatten(0, 1)
    grid = (2 * locations.to(number) - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
    return maps, grid, weights.to(number).permute(0, 2, 3, 4, 1).flatten(0, 1)


def _blocks(maps: Tensor, grid: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of all tensors, as many at once as fit into a CPU's cache; elsewhere, and in a traced graph, all."""
    if maps.device.type != "cpu" or torch.compiler.is_compiling():
        return iter([(maps, grid, *others)])
    rows = max(1, CACHE // max(1, maps.shape[1] * grid.shape[2] * grid.shape[3]))
    return zip(*(x.split(rows) for x in (maps, grid, *others)))


def _levels(maps: Tensor, shapes: Shapes) -> list[Tensor]:
    """[.,C,S] -> L of [.,C,H,W]"""
    parts = maps.split([height * width for height, width in shapes], dim=2)
    return [part.unflatten(2, shape) for part, shape in zip(parts, shapes)]


def _sampled(shapes: Shapes, maps: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
    """What every query sees, [.,C,Q]."""
    seen = maps.new_zeros(*maps.shape[:2], grid.shape[3])
    for level, features in enumerate(_levels(maps, shapes)):
        samples = F.grid_sample(features, grid[:, level], align_corners=False)  # [.,C,P,Q]
        seen += samples.mul_(weights[:, level].unsqueeze(1)).sum(2)
    return seen


def _sampled_backward(
    shapes: Shapes, maps: Tensor, grid: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of maps, grid and weights by that of `_sampled`."""
    by_map, by_grid, by_weight = [], [], []
    for level, features in enumerate(_levels(maps, shapes)):
        samples = F.grid_sample(features, grid[:, level], align_corners=False)
        by_weight.append(samples.mul_(grad.unsqueeze(2)).sum(1))
        by_samples = torch.mul(grad.unsqueeze(2), weights[:, level].unsqueeze(1), out=samples)
        by_features, by_points = torch.ops.aten.grid_sampler_2d_backward(
            by_samples,
            features,
            grid[:, level],
            0,
            0,
            False,
            [True, True],  # bilinear, zeros outside
        )
        by_map.append(by_features.flatten(2))
        by_grid.append(by_points)
    return torch.cat(by_map, 2), torch.stack(by_grid, 1), torch.stack(by_weight, 1)


# the layer


class DeformableAttention(nn.Module):
    """Queries look at points around their reference: queries [B,K,N,C] at a memory, or its own tokens [B,S,C] at it."""

    def __init__(self, channels: int, num_heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.num_heads, self.levels, self.points = num_heads, levels, points
        self.value, self.output = Linear(channels, channels), Linear(channels, channels)
        self.offsets = Linear(channels, num_heads * levels * points * 2)
        self.weights = Linear(channels, num_heads * levels * points)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Every head starts looking its own way, point p at p pixels' distance, at all points alike.

        A detector that initialises all its weights by Xavier's rule calls this again afterwards.
        """
        for projection in (self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
        for projection in (self.offsets, self.weights):
            nn.init.zeros_(projection.weight)
        for projection in (self.value, self.output, self.weights):
            nn.init.zeros_(projection.bias)
        self.offsets.bias.copy_(self.first_offsets().flatten())

    def first_offsets(self) -> Tensor:
        """[heads,L,P,2] pixels: rays to the border of a square."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ray = ray / ray.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.points + 1)
        return (ray[:, None, None] * distance[:, None]).expand(-1, self.levels, -1, -1)

    def view(self, memory: Memory) -> View:
        """The values [B,S,heads,C/heads], of which there are none in the padding."""
        value = self.value(memory.tokens)
        if memory.padded:
            value = value.masked_fill(memory.padding.unsqueeze(-1), 0.0)
        return (value.unflatten(-1, (self.num_heads, -1)),)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        aim: Tensor,
        memory: Memory,
        view: View | None = None,
    ) -> Tensor:
        """``aim`` [...,L,R]: the reference of a query, a point (R=2) or a box (R=4), in [0,1] of every level.

        Levels are padded, so where the image ends may differ from one to the next.
        """
        query = content + position
        (value,) = view or self.view(memory)
        points = self.locations(query, aim, memory.shapes), self.shares(query)
        locations, weights = (end_to_end(x) for x in points) if content.ndim == 4 else points
        return self.output(deformable_attention(value, memory.shapes, locations, weights)).reshape(
            content.shape
        )

    def locations(self, query: Tensor, aim: Tensor, shapes: Shapes) -> Tensor:
        """Where to look, [...,heads,L,P,2] and never in 16 bits: offsets are in pixels around a point, and around a
        box in shares of half its size, point p reaching p of P of them at first.
        """
        offsets = self.offsets(query).unflatten(-1, (self.num_heads, self.levels, self.points, 2))
        aim = aim.to(_wide(aim)).unsqueeze(-2).unsqueeze(-4)  # [...,1,L,1,R]
        if aim.shape[-1] == 2:
            sizes = torch.tensor([shape[::-1] for shape in shapes], dtype=aim.dtype)
            return aim + offsets / sizes.to(aim.device, non_blocking=True).unsqueeze(-2)
        return aim[..., :2] + offsets / self.points * aim[..., 2:] * 0.5

    def shares(self, query: Tensor) -> Tensor:
        """How much each point counts, [...,heads,L,P], at least in 32 bits: those of a head add up to one."""
        weights = self.weights(query).unflatten(-1, (self.num_heads, self.levels * self.points))
        return weights.softmax(-1, dtype=_wide(weights)).unflatten(-1, (self.levels, self.points))


class DeformableCrossAttention(DeformableAttention):
    """Of queries [B,K,N,C], which aim at their reference [B|1,K,N,R], in [0,1] of the image without its padding."""

    def aim(self, content: Tensor, reference: Tensor) -> Tensor:
        del content
        return reference

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        aim: Tensor,
        memory: Memory,
        view: View | None = None,
    ) -> Tensor:
        ratios = memory.valid_ratios.repeat(1, 1, aim.shape[-1] // 2)  # [B,L,R]
        return super().forward(
            content, position, aim.unsqueeze(-2) * ratios[:, None, None], memory, view
        )
