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

from groupdetr.attention import deformable
from groupdetr.attention.deformable import in_pytorch, in_triton
from tests.attention.samples import SMALL, Sizes, assert_alike, inputs, sizes, with_gradients
from tests.attention.test_deformable import on_the_lines

deformable_triton = pytest.importorskip("groupdetr.attention.deformable_triton", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter cuts numbers down to 16 bits where a GPU rounds to the nearest
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def check(sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> None:
    """Value and all gradients; those of locations and weights do not suffer from a value of 16 bits."""
    exact = inputs(sizes, seed)
    expected = with_gradients(in_pytorch, sizes.shapes, *exact)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    value, locations, weights = exact[0].to(DEVICE, dtype), exact[1].to(DEVICE, wide), exact[2].to(DEVICE, wide)
    found = [x.cpu() for x in with_gradients(in_triton, sizes.shapes, value, locations, weights)]
    assert [x.dtype for x in found] == [dtype, dtype, wide, wide]
    assert_alike(found, expected, ROUNDING[dtype])
    assert_alike([*expected[:2], *found[2:]], expected, ROUNDING[wide])


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    check(SMALL, dtype)


def examples(number: int) -> settings:
    return settings(deadline=None, max_examples=number, suppress_health_check=[HealthCheck.too_slow])


@examples(8)
@given(sizes(most_levels=3, most_points=3, most_queries=20), st.integers(0, 10**6))
def test_every_shape(sizes: Sizes, seed: int) -> None:
    check(sizes, torch.float32, seed)


@pytest.mark.slow
@examples(150)
@given(sizes(), st.integers(0, 10**6), st.sampled_from(list(ROUNDING)))
def test_every_shape_and_dtype(sizes: Sizes, seed: int, dtype: torch.dtype) -> None:
    check(sizes, dtype, seed)


def test_more_programs_than_one_for_images_heads_and_queries() -> None:
    check(Sizes(((4, 3), (2, 2)), images=3, queries=70, heads=3, channels=32, points=1), torch.float32)


def test_on_the_lines_where_the_gradient_jumps_both_jump_alike() -> None:
    sizes = Sizes(((4, 8), (2, 1)))
    exact = on_the_lines(sizes)
    found = with_gradients(in_triton, sizes.shapes, *(x.float().to(DEVICE) for x in exact))
    assert_alike([x.cpu() for x in found], with_gradients(in_pytorch, sizes.shapes, *exact), ROUNDING[torch.float32])


@pytest.mark.parametrize("far", [-1e9, 1e9])
def test_far_from_the_image_there_is_nothing(far: float) -> None:
    value, locations, weights = (x.float().to(DEVICE) for x in inputs(SMALL))
    out, *gradients = with_gradients(in_triton, SMALL.shapes, value, torch.full_like(locations, far), weights)
    assert not out.any()
    assert not any(gradient.any() for gradient in gradients)


def test_tensors_that_do_not_lie_in_order() -> None:
    exact = [x.float() for x in inputs(SMALL)]
    reversed_axes = [x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim))) for x in exact]
    assert not any(x.is_contiguous() for x in reversed_axes)
    found = with_gradients(in_triton, SMALL.shapes, *(x.to(DEVICE) for x in reversed_axes))
    assert_alike([x.cpu() for x in found], with_gradients(in_pytorch, SMALL.shapes, *exact), ROUNDING[torch.float32])


def test_no_queries_see_nothing() -> None:
    value, locations, weights = (x.float().to(DEVICE) for x in inputs(Sizes(SMALL.shapes, queries=0)))
    out, *gradients = with_gradients(in_triton, SMALL.shapes, value, locations, weights)
    assert out.shape == (2, 0, 32)
    assert not gradients[0].any()


def test_it_is_an_operation_that_pytorch_can_trace() -> None:
    given = [x.float().to(DEVICE).requires_grad_() for x in inputs(Sizes(((2, 2), (1, 1)), queries=2, heads=1))]
    torch.library.opcheck(deformable_triton.attend, (given[0], [2, 2, 1, 1], given[1], given[2]))


def test_it_compiles_to_one_graph_without_being_looked_into() -> None:
    sizes = Sizes(((2, 2), (1, 1)), queries=2, heads=1)
    given = [x.float().to(DEVICE) for x in inputs(sizes)]
    compiled = torch.compile(in_triton, backend="aot_eager", fullgraph=True)
    assert_alike(
        with_gradients(compiled, sizes.shapes, *given), with_gradients(in_triton, sizes.shapes, *given), 1e-6
    )  # fmt: skip


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_on_a_gpu_it_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*inputs: Tensor) -> Tensor:
        return inputs[0]

    monkeypatch.setattr(deformable, "in_triton", ran)
    value, locations, weights = (x.to(DEVICE) for x in inputs(SMALL))
    assert deformable.deformable_attention(value, SMALL.shapes, locations, weights) is value


COMPILE = """
import sys
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from groupdetr.attention.deformable_triton import _backward, _forward, Tile

PARAMETERS = {"num_tokens": "i32", "num_queries": "i32", "shapes": (("i32", "i32"),) * 4, "TILE": "constexpr"}
for dtype, vector in (("fp32", 4), ("bf16", 8)):
    given = (f"*{dtype}", "*fp32", "*fp32")
    kernels = {
        _forward: ({"inputs": given, "out": f"*{dtype}"}, [(0, 0), (1,)], vector),
        _backward: ({"tensors": (*given, f"*{dtype}", "*fp32", "*fp32", "*fp32")}, [(0, 0), (0, 3), (0, 4)], 4),
    }
    for kernel, (tensors, aligned, vector) in kernels.items():
        source = ASTSource(
            kernel, {**tensors, **PARAMETERS}, {"TILE": Tile(8, 32, 4, 4 * vector, 32, vector, tl.float32)},
            {path: [["tt.divisibility", 16]] for path in aligned},
        )
        code = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32)).asm["ptx"]
        wide = "ld.global.v2.b32" if kernel is _backward and dtype == "bf16" else "ld.global.v4.b32"
        assert code.count(wide) >= 16, wide
print("compiled")
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_gpu_that_is_not_there_and_read_many_channels_at_once(
    capability: int, tmp_path: Path
) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "kernels.py"
    script.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, str(script), str(capability)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "compiled\n", done.stderr[-3000:]
