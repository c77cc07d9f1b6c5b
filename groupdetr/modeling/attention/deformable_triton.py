"""Deformable attention as two Triton kernels, compiled for the card they first run on. Imports only where Triton is.

A program takes ``rows`` queries of one head: a row of a tile is a query, a column one of the head's channels, so
the four corners of a sampled point are four rows of memory read as they lie. Arithmetic is in 32 bits (64 for 64-bit
values). Backward keeps the inputs alone and samples again; what many queries add to one token is added by atomics, in
no fixed order, so its last bits differ from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

THREADS = 128  # of a program; on a GPU not tuned yet


class Tile(NamedTuple):
    """What a kernel is compiled for. Image sizes are not part of it, so a new one compiles nothing."""

    heads: int
    channels: int  # of a head
    points: int
    rows: int  # queries of a program
    columns: int  # channels, rounded up to a power of two
    vector: int  # channels that a thread moves at once
    number: tl.dtype  # what sums are made in

    @classmethod
    def of(cls, value: Tensor, points: int, moved: torch.dtype) -> Tile:
        """A tile whose rows are moved in pieces of 128 bits, one for each thread, if they are of dtype ``moved``."""
        heads, channels = value.shape[2:]
        columns = triton.next_power_of_2(channels)
        vector = min(16 // moved.itemsize, columns)
        number = tl.float64 if value.dtype == torch.float64 else tl.float32
        return cls(
            heads, channels, points, max(1, THREADS * vector // columns), columns, vector, number
        )

    def programs(self, images: int, queries: int) -> tuple[int, int]:
        """Heads of the same queries side by side: they run at once, and nearby queries look at nearby tokens."""
        return triton.cdiv(queries, self.rows) * self.heads, images


@triton.jit
def _place(num_queries, TILE: tl.constexpr):
    """The image and head of this program; the rows of its queries in [B*Q*heads]; which of them exist."""
    head = tl.program_id(0) % TILE.heads
    query = tl.program_id(0) // TILE.heads * TILE.rows + tl.arange(0, TILE.rows)
    image = tl.program_id(1).to(tl.int64)
    return image, head, (image * num_queries + query) * TILE.heads + head, query < num_queries


@triton.jit
def _channels(row, exists, TILE: tl.constexpr):
    """Where rows of [...,heads,C] lie: offsets [rows,columns], and which of them exist."""
    column = tl.max_contiguous(tl.arange(0, TILE.columns), TILE.vector)
    return row[:, None] * TILE.channels + column[None, :], exists[:, None] & (
        column < TILE.channels
    )[None, :]


@triton.jit
def _point(locations, weights, at, exists, shape, TILE: tl.constexpr):
    """A point of every query: the pixel to its upper left, how far beyond that it lies, and its weight.

    Queries that do not exist look where there is no image.
    """
    height, width = shape
    x = tl.load(locations + 2 * at, exists, other=-1.0).to(TILE.number) * width - 0.5
    y = tl.load(locations + 2 * at + 1, exists, other=-1.0).to(TILE.number) * height - 0.5
    weight = tl.load(weights + at, exists, other=0.0).to(TILE.number)
    left, top = tl.floor(x), tl.floor(y)
    return (_bounded(left, width), _bounded(top, height)), (x - left, y - top), weight


@triton.jit
def _bounded(index, size):
    """A pixel however far away as an integer that does not overflow, outside the image if it was."""
    return tl.minimum(tl.maximum(index, -2.0), size * 1.0).to(tl.int32)


@triton.jit
def _corner(pixel, beyond, shape, CORNER: tl.constexpr):
    """One of the four pixels around a point: its token of the level, whether it exists, its shares along x and y."""
    height, width = shape
    x, y = pixel[0] + CORNER % 2, pixel[1] + CORNER // 2
    share_x = beyond[0] if CORNER % 2 else 1 - beyond[0]
    share_y = beyond[1] if CORNER // 2 else 1 - beyond[1]
    return y * width + x, (x >= 0) & (x < width) & (y >= 0) & (y < height), share_x, share_y


@triton.jit(do_not_specialize=["num_tokens", "num_queries"])
def _forward(inputs, out, num_tokens, num_queries, sides, TILE: tl.constexpr):
    """``inputs``: (value, locations, weights). ``sides``: height and width of every level, as `_odd` numbers."""
    value, locations, weights = inputs
    image, head, row, exists = _place(num_queries, TILE)
    first = image * num_tokens  # token of the level
    seen = tl.zeros((TILE.rows, TILE.columns), TILE.number)
    for level in tl.static_range(len(sides) // 2):
        shape = sides[2 * level] // 2, sides[2 * level + 1] // 2
        for point in tl.range(TILE.points):
            at = row * (len(sides) // 2 * TILE.points) + (level * TILE.points + point)
            pixel, beyond, weight = _point(locations, weights, at, exists, shape, TILE)
            for corner in tl.static_range(4):
                token, there, share_x, share_y = _corner(pixel, beyond, shape, corner)
                channel, there = _channels((first + token) * TILE.heads + head, there, TILE)
                corner_value = tl.load(value + channel, there, other=0.0).to(TILE.number)
                seen += (weight * share_x * share_y)[:, None] * corner_value
        first += shape[0] * shape[1]
    own, real = _channels(row, exists, TILE)
    tl.store(out + own, seen, real)


@triton.jit(do_not_specialize=["num_tokens", "num_queries"])
def _backward(tensors, num_tokens, num_queries, sides, TILE: tl.constexpr):
    """``tensors``: the inputs, the gradient of out, and theirs, that of value zero at first and of dtype ``number``.

    All that weight and location need of a corner is one number: how alike its channels and the gradient's are.
    """
    value, locations, weights, grad, grad_value, grad_locations, grad_weights = tensors
    image, head, row, exists = _place(num_queries, TILE)
    first = image * num_tokens
    own, real = _channels(row, exists, TILE)
    wanted = tl.load(grad + own, real, other=0.0).to(TILE.number)
    for level in tl.static_range(len(sides) // 2):
        shape = sides[2 * level] // 2, sides[2 * level + 1] // 2
        for point in tl.range(TILE.points):
            at = row * (len(sides) // 2 * TILE.points) + (level * TILE.points + point)
            pixel, beyond, weight = _point(locations, weights, at, exists, shape, TILE)
            by_weight, by_x, by_y = (
                tl.zeros_like(weight),
                tl.zeros_like(weight),
                tl.zeros_like(weight),
            )
            for corner in tl.static_range(4):
                token, there, share_x, share_y = _corner(pixel, beyond, shape, corner)
                channel, there = _channels((first + token) * TILE.heads + head, there, TILE)
                corner_value = tl.load(value + channel, there, other=0.0).to(TILE.number)
                tl.atomic_add(
                    grad_value + channel,
                    (weight * share_x * share_y)[:, None] * wanted,
                    there,
                    "relaxed",
                )
                alike = tl.sum(corner_value * wanted, axis=1)
                by_weight += share_x * share_y * alike
                by_x += share_y * alike * (corner % 2 * 2 - 1)
                by_y += share_x * alike * (corner // 2 * 2 - 1)
            tl.store(grad_weights + at, by_weight, exists)
            tl.store(grad_locations + 2 * at, weight * by_x * shape[1], exists)
            tl.store(grad_locations + 2 * at + 1, weight * by_y * shape[0], exists)
        first += shape[0] * shape[1]


@torch.library.custom_op("groupdetr::deformable_attention", mutates_args=())
def attend(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`groupdetr.modeling.attention.deformable_attention.deformable_attention`, ``sides`` being its shapes one after the other."""
    images, queries, heads, _, points, _ = locations.shape
    inputs = value.contiguous(), locations.contiguous(), weights.contiguous()
    out = value.new_empty(images, queries, heads * value.shape[3])
    tile = Tile.of(value, points, value.dtype)
    if out.numel():
        with torch.cuda.device_of(value):
            _forward[tile.programs(images, queries)](
                inputs,
                out,
                value.shape[1],
                queries,
                _odd(sides),
                TILE=tile,
                num_warps=THREADS // 32,
            )
    return out


@torch.library.custom_op("groupdetr::deformable_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    images, queries, _, _, points, _ = locations.shape
    inputs = value.contiguous(), locations.contiguous(), weights.contiguous()
    sums = torch.float64 if value.dtype == torch.float64 else torch.float32
    grads = (
        torch.zeros_like(inputs[0], dtype=sums),
        torch.empty_like(inputs[1]),
        torch.empty_like(inputs[2]),
    )
    tile = Tile.of(value, points, sums)
    if grad.numel():
        with torch.cuda.device_of(value):
            _backward[tile.programs(images, queries)](
                (*inputs, grad.contiguous(), *grads),
                value.shape[1],
                queries,
                _odd(sides),
                TILE=tile,
                num_warps=THREADS // 32,
            )
    return grads[0].to(value.dtype), grads[1], grads[2]


def _odd(sides: Sequence[int]) -> tuple[int, ...]:
    """Twice the sides and one: of a number in a tuple that is 1 or divisible by 16 Triton compiles a special case."""
    return tuple(2 * side + 1 for side in sides)


@attend.register_fake
def _(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    del sides, weights
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@_attend_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, sides
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (value, locations, weights)
    )  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    by_value, by_locations, by_weights = _attend_backward(
        grad, value, ctx.sides, locations, weights
    )
    return by_value, None, by_locations, by_weights


attend.register_autograd(_differentiate, setup_context=_keep)
