"""Deformable attention (Deformable DETR, Zhu et al. 2021, Sec. 4.1).

In every head, a query attends to P sampling points on each of L levels. It predicts their sampling
offsets and their attention weights. Nothing has to be compiled at installation: on CUDA devices the
operation is a Triton kernel, elsewhere it is plain PyTorch. `use_backend` overrides that choice.
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

from groupdetr.groups import flatten_groups
from groupdetr.modeling.attention.cross_attention import CrossAttention, KeysValues
from groupdetr.modeling.linear import Linear
from groupdetr.ops.level_sizes import level_sizes
from groupdetr.structures.memory import Memory

Shapes = tuple[tuple[int, int], ...]  # (height, width) of every level, as in `Memory`

# A backend: (value, shapes, sampling_locations, attention_weights) -> attended values
Backend = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]

# A constant, so that torch.compile does not have to trace the search for the package
TRITON_INSTALLED = find_spec("triton") is not None

# The backend that `use_backend` has selected; None selects it by device. This is a module variable
# and not a ContextVar, because autograd's own threads, in which gradient checkpointing runs a layer
# again, must use the backend of the forward pass.
_selected_backend: Backend | None = None


def deformable_attention(
    value: Tensor, shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample values bilinearly and sum them by their weights.

    ``value`` [B,S,heads,C], ``sampling_locations`` [B,Q,heads,L,P,2], ``attention_weights``
    [B,Q,heads,L,P] -> [B,Q,heads*C] in the dtype of ``value``.

    Locations are x and y, with the image in [0,1]. Values are interpolated between the centres of
    pixels and are zero outside the image. Locations need 32 bits even if values have 16, because
    the eight significant bits of bfloat16 cannot distinguish neighbouring pixels. Sums are computed
    in at least 32 bits. Only the inputs are kept for the backward pass. `ValueError` if the shapes
    of the inputs do not fit.
    """
    images, tokens, heads, _ = value.shape
    queries = sampling_locations.shape[1]
    points = sampling_locations.shape[4]
    expected = (images, queries, heads, len(shapes), points, 2)
    if sampling_locations.shape != expected or attention_weights.shape != expected[:-1]:
        raise ValueError(
            f"sampling locations {tuple(sampling_locations.shape)} must be {expected}, and "
            f"attention weights {tuple(attention_weights.shape)} must be {expected[:-1]}"
        )
    if sum(height * width for height, width in shapes) != tokens:
        raise ValueError(f"shapes {shapes} must add up to {tokens} tokens")
    backend = _selected_backend
    if backend is None:
        backend = _backend_on_cuda() if value.is_cuda else in_pytorch
    return backend(value, shapes, sampling_locations, attention_weights)


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Make `deformable_attention` call `in_pytorch` or `in_triton` on any device.

    For example, ``with use_backend(in_pytorch): torch.export.export(model, ...)`` exports a model
    on a GPU without the kernel. The choice holds for all threads of the process.
    """
    global _selected_backend
    previous = _selected_backend
    _selected_backend = backend
    try:
        yield
    finally:
        _selected_backend = previous


def _backend_on_cuda() -> Backend:
    """Return the Triton kernel, or PyTorch's operations if Triton is not installed."""
    if TRITON_INSTALLED:
        return in_triton
    if not torch.compiler.is_compiling():  # Without Triton, there is hardly a compiler on CUDA.
        _warn_without_triton()
    return in_pytorch


@cache
def _warn_without_triton() -> None:
    """Warn once that deformable attention is slow."""
    warnings.warn(
        "Triton is not installed: deformable attention runs in plain PyTorch, several times "
        "slower. Install it with `pip install triton`, or silence this warning with "
        "`with use_backend(in_pytorch)`.",
        stacklevel=4,
    )


def in_triton(
    value: Tensor, shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """`deformable_attention` as a Triton kernel, which is an opaque operation to torch.compile."""
    from groupdetr.modeling.attention import deformable_triton

    sides: list[int] = []
    for height, width in shapes:
        sides += [height, width]
    return deformable_triton.deformable_attention(
        value, sides, sampling_locations, attention_weights
    )


def in_pytorch(
    value: Tensor, shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """`deformable_attention` by grid_sample, for any device, torch.compile and export."""
    # An exported graph cannot hold an autograd function.
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _DeformableAttentionFunction.apply(
            value, shapes, sampling_locations, attention_weights
        )
    return _deformable_attention_forward(value, shapes, sampling_locations, attention_weights)


def _at_least_float32(*tensors: Tensor) -> torch.dtype:
    """Return float64 if a tensor has it, otherwise float32."""
    # `torch.promote_types` would become a node of exported graphs.
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


# The operation in PyTorch. Below, "locations" are the sampling locations and "weights" the
# attention weights.

# The most numbers that are sampled at once on a CPU: 1 MiB of float32. The samples are then summed
# while they are still in the processor's cache.
MAX_CPU_SAMPLES = 2**18


class _DeformableAttentionFunction(torch.autograd.Function):
    """The operation and its gradients, one level after the other.

    The samples of all L*P points never exist at the same time. The backward pass samples again
    instead of keeping the samples.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        return _deformable_attention_forward(value, shapes, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        images, _, heads, _ = value.shape
        maps, grid, head_weights = _heads_as_images(value, locations, weights)
        grad = grad.to(maps.dtype).unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)

        grads_maps, grads_grid, grads_weights = [], [], []
        for part in _split_for_cache(maps, grid, head_weights, grad):
            grad_maps, grad_grid, grad_weights = _sample_backward(ctx.shapes, *part)
            grads_maps.append(grad_maps)
            grads_grid.append(grad_grid)
            grads_weights.append(grad_weights)

        # Back to the axes of the inputs: the reverse of `_heads_as_images`. The grid is twice the
        # locations minus one, hence the factor of two.
        grad_maps = torch.cat(grads_maps).unflatten(0, (images, heads))  # [B,heads,C,S]
        grad_grid = torch.cat(grads_grid).unflatten(0, (images, heads))  # [B,heads,L,P,Q,2]
        grad_weights = torch.cat(grads_weights).unflatten(0, (images, heads))  # [B,heads,L,P,Q]
        grad_value = grad_maps.permute(0, 3, 1, 2).to(value.dtype)
        grad_locations = grad_grid.permute(0, 4, 1, 2, 3, 5).mul(2).to(locations.dtype)
        grad_weights = grad_weights.permute(0, 4, 1, 2, 3).to(weights.dtype)
        return grad_value, None, grad_locations, grad_weights


def _deformable_attention_forward(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    images, _, heads, _ = value.shape
    maps, grid, head_weights = _heads_as_images(value, locations, weights)
    attended = []
    for part in _split_for_cache(maps, grid, head_weights):
        attended.append(_sample(shapes, *part))
    by_head = torch.cat(attended).unflatten(0, (images, heads))  # [B,heads,C,Q]
    return by_head.permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def _heads_as_images(
    value: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn every head into an image of its own, as grid_sample needs it.

    Returns maps [B*heads,C,S], a grid [B*heads,L,P,Q,2] in [-1,1] and weights [B*heads,L,P,Q].
    Queries come last, so that a sum over points adds contiguous rows.
    """
    dtype = _at_least_float32(value, locations)
    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)
    grid = (2 * locations.to(dtype) - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
    head_weights = weights.to(dtype).permute(0, 2, 3, 4, 1).flatten(0, 1)
    return maps, grid, head_weights


def _split_for_cache(maps: Tensor, grid: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split all tensors along their first axis into parts whose samples fit into a CPU's cache.

    On other devices and in a traced graph there is one part.
    """
    if maps.device.type != "cpu" or torch.compiler.is_compiling():
        return iter([(maps, grid, *others)])
    samples_per_row = maps.shape[1] * grid.shape[2] * grid.shape[3]  # C * P * Q
    rows = max(1, MAX_CPU_SAMPLES // max(1, samples_per_row))
    parts_by_tensor = [x.split(rows) for x in (maps, grid, *others)]
    return zip(*parts_by_tensor)


def _split_levels(maps: Tensor, shapes: Shapes) -> list[Tensor]:
    """[.,C,S] -> L maps [.,C,H,W]."""
    levels = maps.split([height * width for height, width in shapes], dim=2)
    return [level.unflatten(2, shape) for level, shape in zip(levels, shapes)]


def _sample(shapes: Shapes, maps: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of every query's samples, [.,C,Q]."""
    attended = maps.new_zeros(*maps.shape[:2], grid.shape[3])
    for level, features in enumerate(_split_levels(maps, shapes)):
        samples = F.grid_sample(features, grid[:, level], align_corners=False)  # [.,C,P,Q]
        attended += samples.mul_(weights[:, level].unsqueeze(1)).sum(2)
    return attended


def _sample_backward(
    shapes: Shapes, maps: Tensor, grid: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of maps, grid and weights. ``grad`` [.,C,Q] is that of `_sample`."""
    grads_maps, grads_grid, grads_weights = [], [], []
    for level, features in enumerate(_split_levels(maps, shapes)):
        samples = F.grid_sample(features, grid[:, level], align_corners=False)  # [.,C,P,Q]
        grads_weights.append(samples.mul_(grad.unsqueeze(2)).sum(1))
        # The samples are not needed any more, so their memory takes their gradient.
        grad_samples = torch.mul(grad.unsqueeze(2), weights[:, level].unsqueeze(1), out=samples)
        bilinear, zeros, align_corners = 0, 0, False  # modes of interpolation and padding
        grad_features, grad_points = torch.ops.aten.grid_sampler_2d_backward(
            grad_samples,
            features,
            grid[:, level],
            bilinear,
            zeros,
            align_corners,
            [True, True],  # compute both gradients
        )
        grads_maps.append(grad_features.flatten(2))
        grads_grid.append(grad_points)
    return torch.cat(grads_maps, 2), torch.stack(grads_grid, 1), torch.stack(grads_weights, 1)


# The layer


class DeformableAttention(CrossAttention):
    """Every query attends to P points of each of L levels, around its reference.

    The queries are object queries [B,K,N,C], or in an encoder the tokens [B,S,C] themselves.
    """

    def __init__(self, channels: int, num_heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.levels = levels
        self.points = points
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self.sampling_offsets = Linear(channels, num_heads * levels * points * 2)
        self.attention_weights = Linear(channels, num_heads * levels * points)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as in Deformable DETR.

        The points of a head lie on a ray of its own and have equal attention weights. A detector
        that initialises all of its weights by Xavier's rule calls this again afterwards.
        """
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
        for projection in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(projection.weight)
        for projection in (self.value_proj, self.output_proj, self.attention_weights):
            nn.init.zeros_(projection.bias)
        self.sampling_offsets.bias.copy_(self.initial_offsets().flatten())

    def initial_offsets(self) -> Tensor:
        """Return [heads,L,P,2] offsets in pixels: point p of a head lies p pixels along its ray.

        The rays of the heads go in equally spaced directions and end on the border of a square.
        """
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        x, y = angle.cos(), angle.sin()
        farthest = torch.maximum(x.abs(), y.abs())
        ray = torch.stack([x / farthest, y / farthest], dim=-1)
        distance = torch.arange(1, self.points + 1)
        return (ray[:, None, None] * distance[:, None]).expand(-1, self.levels, -1, -1)

    def precompute_keys_values(self, memory: Memory) -> KeysValues:
        """Return the values [B,S,heads,C/heads]. They are zero in the padding."""
        value = self.value_proj(memory.tokens)
        if memory.padded:
            value = value.masked_fill(memory.padding.unsqueeze(-1), 0.0)
        return (value.unflatten(-1, (self.num_heads, -1)),)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Memory,
        keys_values: KeysValues | None = None,
    ) -> Tensor:
        """``content`` and ``position`` [B,K,N,C] or [B,S,C] -> the shape of ``content``.

        ``reference`` [...,L,R] is a point (R=2: x, y) or a box (R=4: cx, cy, w, h) in [0,1] of each
        padded level. Levels are padded by different shares, so it has a level axis.
        """
        query = content + position
        (value,) = keys_values or self.precompute_keys_values(memory)
        locations = self.compute_sampling_locations(query, reference, memory.shapes)
        weights = self.compute_attention_weights(query)
        if content.ndim == 4:
            locations, weights = flatten_groups(locations), flatten_groups(weights)
        attended = deformable_attention(value, memory.shapes, locations, weights)
        return self.output_proj(attended).reshape(content.shape)

    def compute_sampling_locations(
        self, query: Tensor, reference: Tensor, shapes: Shapes
    ) -> Tensor:
        """Return the sampling locations [...,heads,L,P,2], x and y in [0,1], in at least 32 bits.

        Around a point, offsets are in pixels of the level. Around a box, an offset of P is half of
        the box's width or height, so that initially point p reaches p / P of the way to its border.
        """
        offsets = self.sampling_offsets(query)
        offsets = offsets.unflatten(-1, (self.num_heads, self.levels, self.points, 2))
        reference = reference.to(_at_least_float32(reference))
        reference = reference.unsqueeze(-2).unsqueeze(-4)  # [...,1,L,1,R]
        if reference.shape[-1] == 2:
            sizes = level_sizes(shapes, reference.dtype, reference.device)
            return reference + offsets / sizes.unsqueeze(-2)
        return reference[..., :2] + offsets / self.points * reference[..., 2:] * 0.5

    def compute_attention_weights(self, query: Tensor) -> Tensor:
        """Return the attention weights [...,heads,L,P] in at least 32 bits.

        The weights of a head add up to one over its L * P points.
        """
        weights = self.attention_weights(query)
        weights = weights.unflatten(-1, (self.num_heads, self.levels * self.points))
        weights = weights.softmax(-1, dtype=_at_least_float32(weights))
        return weights.unflatten(-1, (self.levels, self.points))


class DeformableCrossAttention(DeformableAttention):
    """Deformable attention of object queries [B,K,N,C].

    Their reference [B|1,K,N,R] is in [0,1] of the image without its padding.
    """

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Memory,
        keys_values: KeysValues | None = None,
    ) -> Tensor:
        # From the unpadded image to every padded level: x and w by the valid ratio of the widths,
        # y and h by that of the heights.
        ratios = memory.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)  # [B,L,R]
        reference_by_level = reference.unsqueeze(-2) * ratios[:, None, None]
        return super().forward(content, position, reference_by_level, memory, keys_values)
