"""The Triton kernels equal deformable attention in PyTorch.

They run on a GPU, or in Triton's interpreter if there is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from groupdetr.modeling.attention import deformable_attention as deformable
from groupdetr.modeling.attention.deformable_attention import in_pytorch, in_triton
from tests.modeling.attention.samples import (
    SMALL,
    Sizes,
    assert_close,
    on_pixel_centre_lines,
    random_inputs,
    random_sizes,
    with_gradients,
)

deformable_triton = pytest.importorskip(
    "groupdetr.modeling.attention.deformable_triton", exc_type=ImportError
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ:
    pytest.skip("no GPU that works: set TRITON_INTERPRET=1", allow_module_level=True)
# The interpreter truncates numbers to 16 bits where a GPU rounds to the nearest.
TINY = Sizes(((2, 3), (1, 1)), queries=3, heads=1, points=2)
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def check(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> None:
    """Output and all gradients are right.

    Values of 16 bits do not make the gradients of locations and weights less precise.
    """
    inputs = random_inputs(sizes, seed)
    expected = with_gradients(in_pytorch, sizes.shapes, *inputs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value = inputs[0].to(DEVICE, dtype)
    locations, weights = inputs[1].to(DEVICE, wide), inputs[2].to(DEVICE, wide)
    actual = [x.cpu() for x in with_gradients(in_triton, sizes.shapes, value, locations, weights)]
    assert [x.dtype for x in actual] == [dtype, dtype, wide, wide]
    assert_close(actual, expected, ROUNDING[dtype])
    assert_close([*expected[:2], *actual[2:]], expected, ROUNDING[wide])


def check_float32(sizes: Sizes, inputs: list[Tensor]) -> None:
    """As `check`, with given inputs."""
    actual = with_gradients(in_triton, sizes.shapes, *(x.float().to(DEVICE) for x in inputs))
    expected = with_gradients(in_pytorch, sizes.shapes, *inputs)
    assert_close([x.cpu() for x in actual], expected, ROUNDING[torch.float32])


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    check(TINY, dtype)


def examples(number: int) -> settings:
    return settings(
        deadline=None, max_examples=number, suppress_health_check=[HealthCheck.too_slow]
    )


@examples(8)
@given(
    random_sizes(max_levels=3, max_points=3, max_queries=10, max_images=2, max_heads=2),
    st.integers(0, 10**6),
)
def test_every_shape(sizes: Sizes, seed: int) -> None:
    check(sizes, torch.float32, seed)


@pytest.mark.slow
@examples(60)
@given(random_sizes(), st.integers(0, 10**6), st.sampled_from(list(ROUNDING)))
def test_every_shape_and_dtype(sizes: Sizes, seed: int, dtype: torch.dtype) -> None:
    check(sizes, dtype, seed)


def test_several_programs_along_images_heads_and_queries() -> None:
    sizes = Sizes(((4, 3), (2, 2)), images=2, queries=40, heads=2, channels=32, points=1)
    check(sizes, torch.float32)


def test_at_discontinuities_both_backends_have_the_same_gradient() -> None:
    sizes = Sizes(((4, 8), (2, 1)))
    check_float32(sizes, list(on_pixel_centre_lines(sizes)))


@pytest.mark.parametrize("coordinate", [-1e9, 1e9])
def test_far_outside_the_image_output_and_gradients_are_zero(coordinate: float) -> None:
    value, locations, weights = (x.float().to(DEVICE) for x in random_inputs(SMALL))
    outside = torch.full_like(locations, coordinate)
    out, *gradients = with_gradients(in_triton, SMALL.shapes, value, outside, weights)
    assert not out.any()
    assert not any(gradient.any() for gradient in gradients)


def reverse_axes(x: Tensor) -> Tensor:
    return x.permute(*reversed(range(x.ndim)))


def test_inputs_need_not_be_contiguous() -> None:
    inputs = [reverse_axes(reverse_axes(x.float()).contiguous()) for x in random_inputs(SMALL)]
    assert not any(x.is_contiguous() for x in inputs)
    check_float32(SMALL, inputs)


def test_without_queries_the_output_is_empty_and_the_gradient_zero() -> None:
    sizes = Sizes(SMALL.shapes, queries=0)
    inputs = (x.float().to(DEVICE) for x in random_inputs(sizes))
    out, *gradients = with_gradients(in_triton, SMALL.shapes, *inputs)
    assert out.shape == (2, 0, 32)
    assert not gradients[0].any()


def test_the_kernel_is_a_valid_custom_operation_of_pytorch() -> None:
    sizes = Sizes(((2, 2), (1, 1)), queries=2, heads=1)
    value, locations, weights = (
        x.float().to(DEVICE).requires_grad_() for x in random_inputs(sizes)
    )
    torch.library.opcheck(
        deformable_triton.deformable_attention, (value, [2, 2, 1, 1], locations, weights)
    )


def test_it_compiles_to_one_graph() -> None:
    sizes = Sizes(((2, 2), (1, 1)), queries=2, heads=1)
    inputs = [x.float().to(DEVICE) for x in random_inputs(sizes)]
    compiled = torch.compile(in_triton, backend="aot_eager", fullgraph=True)
    actual = with_gradients(compiled, sizes.shapes, *inputs)
    expected = with_gradients(in_triton, sizes.shapes, *inputs)
    assert_close(actual, expected, 1e-6)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_gpu_uses_the_kernel_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_kernel(*inputs: Tensor) -> Tensor:
        return inputs[0]

    monkeypatch.setattr(deformable, "in_triton", fake_kernel)
    value, locations, weights = (x.to(DEVICE) for x in random_inputs(SMALL))
    assert deformable.deformable_attention(value, SMALL.shapes, locations, weights) is value


COMPILE = """
from itertools import product
import torch
import triton
from triton.backends.compiler import GPUTarget
from groupdetr.modeling.attention.deformable_triton import Tile, _backward, _encode_sides, _forward

class FakeDriver:
    capability = 0
    get_current_device = get_current_stream = lambda self, *_: self.capability
    get_current_target = lambda self: GPUTarget("cuda", self.capability, 32)

triton.runtime.driver.set_active(driver := FakeDriver())

def compile_kernel(kernel, tensors, tile, num_tokens, num_queries, sides):
    encoded_sides = _encode_sides(sides)
    return kernel.run(
        *tensors, num_tokens, num_queries, encoded_sides,
        TILE=tile, num_warps=4, grid=tile.grid(2, 9), warmup=True,
    )

for capability, dtype in product((80, 90), (torch.float32, torch.bfloat16)):
    driver.capability = capability
    value, out = torch.zeros(2, 39, 8, 32, dtype=dtype), torch.zeros(2, 9, 256, dtype=dtype)
    points = torch.zeros(9)
    forward = (value, points, points), out
    backward = ((value, points, points, out, value.float(), points, points),)
    kernels = (_forward, forward, dtype), (_backward, backward, torch.float32)
    for kernel, tensors, widest in kernels:
        tile = Tile.create(value, 4, widest)
        first = compile_kernel(kernel, tensors, tile, 39, 9, [5, 7, 3, 1, 1, 1])
        second = compile_kernel(kernel, tensors, tile, 336, 16, [16, 16, 8, 8, 4, 4])
        assert first is second, "compiled again for another size"
        loads_64_bits = kernel is _backward and dtype == torch.bfloat16
        load = "ld.global.v2.b32" if loads_64_bits else "ld.global.v4.b32"
        assert first.asm["ptx"].count(load) >= 12
print("compiled")
"""


def test_kernels_compile_once_for_all_sizes_and_load_128_bits_at_once(tmp_path: Path) -> None:
    """They are compiled for two GPUs that this machine need not have.

    Of 16-bit values, the backward kernel loads 64 bits at once: as many channels as it adds at once
    in 32 bits.
    """
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "kernels.py"
    script.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "compiled\n", done.stderr[-3000:]
