"""Random inputs of deformable attention, and transformers' implementation as the reference."""

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

    @property
    def levels(self) -> int:
        return len(self.shapes)

    @property
    def widths_heights(self) -> Tensor:
        """[L,1,2]: width and height of every level, to convert locations (x, y) to pixels."""
        return torch.tensor([(width, height) for height, width in self.shapes]).unsqueeze(-2)


SMALL = Sizes(((5, 7), (3, 1), (1, 1)))


def random_sizes(
    max_levels: int = 5,
    max_points: int = 6,
    max_queries: int = 40,
    max_images: int = 3,
    max_heads: int = 3,
) -> st.SearchStrategy[Sizes]:
    side = st.integers(1, 6)
    shapes = st.lists(st.tuples(side, side), min_size=1, max_size=max_levels).map(tuple)
    return st.builds(
        Sizes,
        shapes,
        images=st.integers(1, max_images),
        queries=st.integers(1, max_queries),
        heads=st.integers(1, max_heads),
        channels=st.integers(16, 64),
        points=st.integers(1, max_points),
    )


def random_inputs(
    sizes: Sizes, seed: int = 0, max_outside: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, sampling locations and attention weights, in float64.

    Locations are up to ``max_outside`` outside the image. They keep a distance from the centre
    lines of pixels, where the gradient is discontinuous. Values are exact in bfloat16, and
    locations and weights in float32, so that converting them to these types does not round them.
    """
    generator = torch.Generator().manual_seed(seed)
    value_shape = (sizes.images, sizes.tokens, sizes.heads, sizes.channels)
    value = torch.randn(value_shape, generator=generator).bfloat16()
    weights_shape = (sizes.images, sizes.queries, sizes.heads, sizes.levels, sizes.points)
    uniform = torch.rand(*weights_shape, 2, generator=generator, dtype=torch.float64)
    locations = uniform * (1 + 2 * max_outside) - max_outside
    pixels = locations * sizes.widths_heights - 0.5
    fraction = pixels - pixels.floor()
    pixels = pixels.floor() + fraction * 0.98 + 0.01
    locations = (pixels + 0.5) / sizes.widths_heights
    weights = torch.rand(weights_shape, generator=generator)
    return value.double(), locations.float().double(), weights.double()


def on_pixel_centre_lines(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with locations at pixel centres and on the border of the image.

    The sides of ``sizes`` must be powers of two, so that the locations are exact in float32.
    """
    value, locations, weights = random_inputs(sizes)
    half_pixels = (locations * sizes.widths_heights * 2).round()
    return value, half_pixels / 2 / sizes.widths_heights, weights


def transformers_attention(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    return MultiScaleDeformableAttention()(value, None, shapes, None, locations, weights, 64)


def with_gradients(attend: Callable[..., Tensor], shapes: Shapes, *inputs: Tensor) -> list[Tensor]:
    """The output of ``attend``, and the gradients of value, locations and weights.

    The gradient of the output is random, and the same for equal sizes.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    value, locations, weights = leaves
    out = attend(value, shapes, locations, weights)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal up to ``tolerance`` of the largest expected number, or of one if that is larger."""
    names = ("out", "value", "locations", "weights")
    for name, a, b in zip(names, actual, expected, strict=True):
        assert a.shape == b.shape, name
        assert a.isfinite().all(), name
        error = (a.double() - b.double()).abs().max() / b.abs().max().clamp(min=1)
        assert error <= tolerance, f"{name}: {error:.1e}"
