"""The kernels against the operation in PyTorch: on a GPU, or in Triton's interpreter where there is none."""

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
    assert_alike,
    inputs,
    sizes,
    with_gradients,
)
from tests.modeling.attention.test_deformable_attention import on_the_lines

deformable_triton = pytest.importorskip(
    "groupdetr.modeling.attention.deformable_triton", exc_type=ImportError
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ:
    pytest.skip("no GPU that works: set TRITON_INTERPRET=1", allow_module_level=True)
# the interpreter cuts numbers down to 16 bits where a GPU rounds to the nearest
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def check(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> None:
    """Value and all gradients; those of locations and weights do not suffer from a value of 16 bits."""
    exact = inputs(sizes, seed)
    expected = with_gradients(in_pytorch, sizes.shapes, *exact)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, locations, weights = (
        exact[0].to(DEVICE, dtype),
        exact[1].to(DEVICE, wide),
        exact[2].to(DEVICE, wide),
    )
    found = [x.cpu() for x in with_gradients(in_triton, sizes.shapes, value, locations, weights)]
    assert [x.dtype for x in found] == [dtype, dtype, wide, wide]
    assert_alike(found, expected, ROUNDING[dtype])
    assert_alike([*expected[:2], *found[2:]], expected, ROUNDING[wide])


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    check(SMALL, dtype)


def examples(number: int) -> settings:
    return settings(
        deadline=None, max_examples=number, suppress_health_check=[HealthCheck.too_slow]
    )


@examples(8)
@given(sizes(most_levels=3, most_points=3, most_queries=20), st.integers(0, 10**6))
def test_every_shape(sizes: Sizes, seed: int) -> None:
    check(sizes, torch.float32, seed)


@pytest.mark.slow
@examples(60)
@given(sizes(), st.integers(0, 10**6), st.sampled_from(list(ROUNDING)))
def test_every_shape_and_dtype(sizes: Sizes, seed: int, dtype: torch.dtype) -> None:
    check(sizes, dtype, seed)


def test_more_programs_than_one_for_images_heads_and_queries() -> None:
    check(
        Sizes(((4, 3), (2, 2)), images=3, queries=70, heads=3, channels=32, points=1), torch.float32
    )


def test_on_the_lines_where_the_gradient_jumps_both_jump_alike() -> None:
    sizes = Sizes(((4, 8), (2, 1)))
    exact = on_the_lines(sizes)
    found = with_gradients(in_triton, sizes.shapes, *(x.float().to(DEVICE) for x in exact))
    assert_alike(
        [x.cpu() for x in found],
        with_gradients(in_pytorch, sizes.shapes, *exact),
        ROUNDING[torch.float32],
    )


@pytest.mark.parametrize("far", [-1e9, 1e9])
def test_far_from_the_image_there_is_nothing(far: float) -> None:
    value, locations, weights = (x.float().to(DEVICE) for x in inputs(SMALL))
    out, *gradients = with_gradients(
        in_triton, SMALL.shapes, value, torch.full_like(locations, far), weights
    )
    assert not out.any()
    assert not any(gradient.any() for gradient in gradients)


def test_tensors_that_do_not_lie_in_order() -> None:
    exact = [x.float() for x in inputs(SMALL)]
    reversed_axes = [
        x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        for x in exact
    ]
    assert not any(x.is_contiguous() for x in reversed_axes)
    found = with_gradients(in_triton, SMALL.shapes, *(x.to(DEVICE) for x in reversed_axes))
    assert_alike(
        [x.cpu() for x in found],
        with_gradients(in_pytorch, SMALL.shapes, *exact),
        ROUNDING[torch.float32],
    )


def test_no_queries_see_nothing() -> None:
    value, locations, weights = (
        x.float().to(DEVICE) for x in inputs(Sizes(SMALL.shapes, queries=0))
    )
    out, *gradients = with_gradients(in_triton, SMALL.shapes, value, locations, weights)
    assert out.shape == (2, 0, 32)
    assert not gradients[0].any()


def test_it_is_an_operation_that_pytorch_can_trace() -> None:
    given = [
        x.float().to(DEVICE).requires_grad_()
        for x in inputs(Sizes(((2, 2), (1, 1)), queries=2, heads=1))
    ]
    torch.library.opcheck(deformable_triton.attend, (given[0], [2, 2, 1, 1], given[1], given[2]))


def test_it_compiles_to_one_graph_without_being_looked_into() -> None:
    sizes = Sizes(((2, 2), (1, 1)), queries=2, heads=1)
    given = [x.float().to(DEVICE) for x in inputs(sizes)]
    compiled = torch.compile(in_triton, backend="aot_eager", fullgraph=True)
    assert_alike(
        with_gradients(compiled, sizes.shapes, *given),
        with_gradients(in_triton, sizes.shapes, *given),
        1e-6,
    )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_on_a_gpu_it_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*inputs: Tensor) -> Tensor:
        return inputs[0]

    monkeypatch.setattr(deformable, "in_triton", ran)
    value, locations, weights = (x.to(DEVICE) for x in inputs(SMALL))
    assert deformable.deformable_attention(value, SMALL.shapes, locations, weights) is value


COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from groupdetr.modeling.attention.deformable_triton import Tile, _backward, _forward, _odd

class Card:
    get_current_device = get_current_stream = lambda *_: 0
    get_current_target = lambda _: GPUTarget("cuda", int(sys.argv[1]), 32)

triton.runtime.driver.set_active(Card())
for dtype in (torch.float32, torch.bfloat16):
    tokens, queries = torch.zeros(2, 39, 8, 32, dtype=dtype), torch.zeros(2, 9, 256, dtype=dtype)
    points = torch.zeros(9)
    forward = (tokens, points, points), queries
    backward = ((tokens, points, points, queries, tokens.float(), points, points),)
    for kernel, tensors, moved in ((_forward, forward, dtype), (_backward, backward, torch.float32)):
        tile = Tile.of(tokens, 4, moved)
        first, second = (
            kernel.run(*tensors, *sizes, _odd(sides), TILE=tile, num_warps=4, grid=tile.programs(2, 9), warmup=True)
            for sizes, sides in (((39, 9), [5, 7, 3, 1, 1, 1]), ((336, 16), [16, 16, 8, 8, 4, 4]))
        )
        assert first is second, "compiled again for another size"
        half = kernel is _backward and dtype == torch.bfloat16
        assert first.asm["ptx"].count("ld.global.v2.b32" if half else "ld.global.v4.b32") >= 12
print("compiled")
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_for_a_gpu_that_is_not_there_it_compiles_once_for_all_sizes_and_reads_128_bits(
    capability: int, tmp_path: Path
) -> None:
    """Of 16-bit values backward reads 64: as many channels as it adds at once in 32 bits."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "kernels.py"
    script.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, str(script), str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "compiled\n", done.stderr[-3000:]
