"""Random inputs of deformable attention, and the operation as transformers writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import (
    MultiScaleDeformableAttention,
)

from groupdetr.modeling.attention.deformable_attention import Shapes


@dataclass(frozen=True)
class Sizes:
    shapes: Shapes
    images: int = 2
    queries: int = 7
    heads: int = 2
    channels: int = 16
    points: int = 3

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.shapes)


SMALL = Sizes(((5, 7), (3, 1), (1, 1)))


def sizes(
    most_levels: int = 5, most_points: int = 6, most_queries: int = 40
) -> st.SearchStrategy[Sizes]:
    side = st.integers(1, 6)
    shapes = st.lists(st.tuples(side, side), min_size=1, max_size=most_levels).map(tuple)
    return st.builds(
        Sizes,
        shapes,
        images=st.integers(1, 3),
        queries=st.integers(1, most_queries),
        heads=st.integers(1, 3),
        channels=st.integers(16, 64),
        points=st.integers(1, most_points),
    )


def inputs(sizes: Sizes, seed: int = 0, outside: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations up to ``outside`` of the image and clear of the lines where the gradient jumps, weights; fp64.

    The first is a number of 16 bits, the others of 32: all that rounding to those does is none.
    """
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(
        sizes.images, sizes.tokens, sizes.heads, sizes.channels, generator=generator
    ).bfloat16()
    per_head = (sizes.images, sizes.queries, sizes.heads, len(sizes.shapes), sizes.points)
    places = (
        torch.rand(*per_head, 2, generator=generator, dtype=torch.float64) * (1 + 2 * outside)
        - outside
    )
    sides = torch.tensor([shape[::-1] for shape in sizes.shapes]).unsqueeze(-2)
    pixels = places * sides - 0.5
    pixels = pixels.floor() + (pixels - pixels.floor()) * 0.98 + 0.01
    weights = torch.rand(per_head, generator=generator)
    return value.double(), ((pixels + 0.5) / sides).float().double(), weights.double()


def reference(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    return MultiScaleDeformableAttention()(value, None, shapes, None, locations, weights, 64)


def with_gradients(attend: Callable[..., Tensor], shapes: Shapes, *inputs: Tensor) -> list[Tensor]:
    """What ``attend`` returns for (value, locations, weights), and its gradients by a direction that sizes fix."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    value, locations, weights = inputs
    out = attend(value, shapes, locations, weights)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def assert_alike(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal up to ``tolerance`` of the largest number, or of one if that is larger."""
    for name, a, b in zip(("out", "value", "locations", "weights"), found, expected, strict=True):
        assert a.shape == b.shape, name
        assert a.isfinite().all(), name
        error = (a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1)
        assert error <= tolerance, f"{name}: {error:.1e}"
