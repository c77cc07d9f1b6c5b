"""Deformable attention as two Triton kernels, a forward and a backward one.

They are compiled for the GPU that they first run on. Importing this file needs Triton.

A program computes ``rows`` queries of one head. In a tile, a row is a query and a column is a
channel of the head, so each of the four pixels around a sampling point is a contiguous row of
memory. Arithmetic is in 32 bits, or in 64 for 64-bit values. The backward pass keeps only the
inputs and samples again. Gradients that several queries add to one token are added by atomics, in
no fixed order, so their last bits differ from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

THREADS = 128  # of a program; not tuned on a GPU yet


class Tile(NamedTuple):
    """The constants that a kernel is compiled for.

    The sizes of images are not among them, so a new size does not compile a kernel again.
    """

    heads: int
    channels: int  # of a head
    points: int
    rows: int  # queries of a program
    columns: int  # channels, rounded up to a power of two
    vector: int  # channels that a thread loads or stores at once
    sum_dtype: tl.dtype

    @classmethod
    def create(cls, value: Tensor, points: int, widest_dtype: torch.dtype) -> Tile:
        """Choose the tile for ``value`` [B,S,heads,C].

        Every thread loads and stores 128 bits of ``widest_dtype`` at once.
        """
        heads, channels = value.shape[2:]
        columns = triton.next_power_of_2(channels)
        vector = min(16 // widest_dtype.itemsize, columns)
        rows = max(1, THREADS * vector // columns)
        sum_dtype = tl.float64 if value.dtype == torch.float64 else tl.float32
        return cls(heads, channels, points, rows, columns, vector, sum_dtype)

    def grid(self, images: int, queries: int) -> tuple[int, int]:
        """Return the number of programs along both axes of the launch grid.

        Programs of the same queries and different heads are neighbours, so they run at the same
        time, and close queries attend to close tokens.
        """
        return triton.cdiv(queries, self.rows) * self.heads, images


@triton.jit
def _locate_program(num_queries, TILE: tl.constexpr):
    """Return the image and the head of this program, its rows in [B*Q*heads], and their mask.

    The mask is True for rows whose query exists.
    """
    head = tl.program_id(0) % TILE.heads
    query = tl.program_id(0) // TILE.heads * TILE.rows + tl.arange(0, TILE.rows)
    image = tl.program_id(1).to(tl.int64)
    row = (image * num_queries + query) * TILE.heads + head
    return image, head, row, query < num_queries


@triton.jit
def _channel_offsets(row, mask, TILE: tl.constexpr):
    """Return the memory offsets [rows,columns] of rows of a tensor [...,heads,C], and their mask.

    ``mask`` [rows] is True for rows that exist.
    """
    # Triton 3.6, that of torch 2.11, takes no field of a tuple here.
    vector: tl.constexpr = TILE.vector
    column = tl.max_contiguous(tl.arange(0, TILE.columns), vector)
    offsets = row[:, None] * TILE.channels + column[None, :]
    # Columns are rounded up to a power of two, so the last of them may not exist.
    channel_exists = (column < TILE.channels)[None, :]
    return offsets, mask[:, None] & channel_exists


@triton.jit
def _load_point(locations, weights, index, mask, shape, TILE: tl.constexpr):
    """Load one sampling point of every query.

    Returns the pixel (x, y) to its upper left, its distance (x, y) from that pixel, and its
    attention weight. Queries that do not exist get a location outside the image.
    """
    height, width = shape
    # The centre of the first pixel is at 0.5 / width, hence the shift by half a pixel.
    x = tl.load(locations + 2 * index, mask, other=-1.0).to(TILE.sum_dtype) * width - 0.5
    y = tl.load(locations + 2 * index + 1, mask, other=-1.0).to(TILE.sum_dtype) * height - 0.5
    weight = tl.load(weights + index, mask, other=0.0).to(TILE.sum_dtype)
    left, top = tl.floor(x), tl.floor(y)
    return (_to_pixel(left, width), _to_pixel(top, height)), (x - left, y - top), weight


@triton.jit
def _to_pixel(coordinate, size):
    """Convert a coordinate to an integer.

    Coordinates far outside the image are clamped, because they would overflow. They stay outside.
    """
    return tl.minimum(tl.maximum(coordinate, -2.0), size * 1.0).to(tl.int32)


@triton.jit
def _corner(pixel, distance, shape, CORNER: tl.constexpr):
    """Return one of the four pixels around a sampling point, number 0 to 3.

    Returns its token in the level, whether it is inside the image, and its bilinear weights along
    x and y.
    """
    height, width = shape
    x, y = pixel[0] + CORNER % 2, pixel[1] + CORNER // 2
    weight_x = distance[0] if CORNER % 2 else 1 - distance[0]
    weight_y = distance[1] if CORNER // 2 else 1 - distance[1]
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return y * width + x, is_inside, weight_x, weight_y


@triton.jit(do_not_specialize=["num_tokens", "num_queries"])
def _forward(inputs, out, num_tokens, num_queries, encoded_sides, TILE: tl.constexpr):
    """Write the attended values of all queries to ``out`` [B,Q,heads*C].

    ``inputs`` are (value, locations, weights). ``encoded_sides`` are the height and width of every
    level, encoded by `_encode_sides`.
    """
    value, locations, weights = inputs
    image, head, row, mask = _locate_program(num_queries, TILE)
    num_levels: tl.constexpr = len(encoded_sides) // 2
    first_token = image * num_tokens  # of the level
    # Triton 3.6, that of torch 2.11, takes no field of a tuple here.
    rows: tl.constexpr = TILE.rows
    columns: tl.constexpr = TILE.columns
    attended = tl.zeros((rows, columns), TILE.sum_dtype)
    for level in tl.static_range(num_levels):
        shape = encoded_sides[2 * level] // 2, encoded_sides[2 * level + 1] // 2
        for point in tl.range(TILE.points):
            index = row * (num_levels * TILE.points) + (level * TILE.points + point)
            pixel, distance, weight = _load_point(locations, weights, index, mask, shape, TILE)
            for corner in tl.static_range(4):
                token, is_inside, weight_x, weight_y = _corner(pixel, distance, shape, corner)
                value_row = (first_token + token) * TILE.heads + head
                offsets, corner_mask = _channel_offsets(value_row, is_inside, TILE)
                corner_value = tl.load(value + offsets, corner_mask, other=0.0).to(TILE.sum_dtype)
                attended += (weight * weight_x * weight_y)[:, None] * corner_value
        first_token += shape[0] * shape[1]
    out_offsets, out_mask = _channel_offsets(row, mask, TILE)
    tl.store(out + out_offsets, attended, out_mask)


@triton.jit(do_not_specialize=["num_tokens", "num_queries"])
def _backward(tensors, num_tokens, num_queries, encoded_sides, TILE: tl.constexpr):
    """Write the gradients of value, locations and weights.

    ``tensors`` are (value, locations, weights, gradient of the output, gradient of value, gradient
    of locations, gradient of weights). The gradient of value is accumulated, so it must be zero at
    first, and its dtype is the ``sum_dtype`` of the tile.
    """
    value, locations, weights, grad_out, grad_value, grad_locations, grad_weights = tensors
    image, head, row, mask = _locate_program(num_queries, TILE)
    num_levels: tl.constexpr = len(encoded_sides) // 2
    first_token = image * num_tokens  # of the level
    out_offsets, out_mask = _channel_offsets(row, mask, TILE)
    grad = tl.load(grad_out + out_offsets, out_mask, other=0.0).to(TILE.sum_dtype)
    for level in tl.static_range(num_levels):
        shape = encoded_sides[2 * level] // 2, encoded_sides[2 * level + 1] // 2
        for point in tl.range(TILE.points):
            index = row * (num_levels * TILE.points) + (level * TILE.points + point)
            pixel, distance, weight = _load_point(locations, weights, index, mask, shape, TILE)
            grad_weight = tl.zeros_like(weight)
            grad_x = tl.zeros_like(weight)
            grad_y = tl.zeros_like(weight)
            for corner in tl.static_range(4):
                token, is_inside, weight_x, weight_y = _corner(pixel, distance, shape, corner)
                value_row = (first_token + token) * TILE.heads + head
                offsets, corner_mask = _channel_offsets(value_row, is_inside, TILE)
                corner_value = tl.load(value + offsets, corner_mask, other=0.0).to(TILE.sum_dtype)
                corner_grad = (weight * weight_x * weight_y)[:, None] * grad
                tl.atomic_add(grad_value + offsets, corner_grad, corner_mask, "relaxed")
                # The gradients of weight and location need one number of each corner: the dot
                # product of its channels and the gradient. The bilinear weight of a right or lower
                # corner grows with x or y, and that of a left or upper corner falls.
                dot = tl.sum(corner_value * grad, axis=1)
                grad_weight += weight_x * weight_y * dot
                grad_x += weight_y * dot * (corner % 2 * 2 - 1)
                grad_y += weight_x * dot * (corner // 2 * 2 - 1)
            # The gradient above is that of a location in pixels. Locations are in [0,1], so it is
            # multiplied by width or height.
            tl.store(grad_weights + index, grad_weight, mask)
            tl.store(grad_locations + 2 * index, weight * grad_x * shape[1], mask)
            tl.store(grad_locations + 2 * index + 1, weight * grad_y * shape[0], mask)
        first_token += shape[0] * shape[1]


@torch.library.custom_op("groupdetr::deformable_attention", mutates_args=())
def deformable_attention(
    value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    """`groupdetr.modeling.attention.deformable_attention.deformable_attention` as one operation.

    ``sides`` are the heights and widths of its shapes, one after the other.
    """
    images, queries, heads, _, points, _ = locations.shape
    inputs = value.contiguous(), locations.contiguous(), weights.contiguous()
    out = value.new_empty(images, queries, heads * value.shape[3])
    tile = Tile.create(value, points, value.dtype)
    if out.numel():
        with torch.cuda.device_of(value):
            _forward[tile.grid(images, queries)](
                inputs,
                out,
                value.shape[1],
                queries,
                _encode_sides(sides),
                TILE=tile,
                num_warps=THREADS // 32,
            )
    return out


@torch.library.custom_op("groupdetr::deformable_attention_backward", mutates_args=())
def _deformable_attention_backward(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights."""
    images, queries, _, _, points, _ = locations.shape
    value_in, locations_in, weights_in = (x.contiguous() for x in (value, locations, weights))
    # Atomics add to the gradient of value, in at least 32 bits.
    sum_dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    grad_value = torch.zeros_like(value_in, dtype=sum_dtype)
    grad_locations = torch.empty_like(locations_in)
    grad_weights = torch.empty_like(weights_in)
    tile = Tile.create(value, points, sum_dtype)
    if grad.numel():
        with torch.cuda.device_of(value):
            _backward[tile.grid(images, queries)](
                (
                    value_in,
                    locations_in,
                    weights_in,
                    grad.contiguous(),
                    grad_value,
                    grad_locations,
                    grad_weights,
                ),
                value.shape[1],
                queries,
                _encode_sides(sides),
                TILE=tile,
                num_warps=THREADS // 32,
            )
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _encode_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """Return twice each side plus one, so that no size compiles a special kernel.

    Triton compiles a special case for integers in a tuple that are 1 or divisible by 16. These are
    odd and at least 3.
    """
    return tuple(2 * side + 1 for side in sides)


@deformable_attention.register_fake
def _(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@_deformable_attention_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    layout = torch.contiguous_format
    return (
        torch.empty_like(value, memory_format=layout),
        torch.empty_like(locations, memory_format=layout),
        torch.empty_like(weights, memory_format=layout),
    )


def _save_inputs(
    ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor
) -> None:
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _deformable_attention_backward(
        grad, value, ctx.sides, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


deformable_attention.register_autograd(_differentiate, setup_context=_save_inputs)
