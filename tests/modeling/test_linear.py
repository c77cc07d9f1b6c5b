"""Linear layers computed by oneDNN equal PyTorch's, which are used wherever oneDNN is no better."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import groupdetr.modeling.flop_formulas  # noqa: F401 (formulas of oneDNN)
from groupdetr.modeling import linear as module
from groupdetr.modeling.linear import Linear, linear

LinearFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]

pytestmark = pytest.mark.skipif(
    not module.ONEDNN_AVAILABLE, reason="this PyTorch is built without oneDNN"
)


def random_inputs(
    x_shape: tuple[int, ...], out: int, bias: bool, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    """x, weight, and bias or None."""
    generator = torch.Generator().manual_seed(0)
    shapes = [x_shape, (out, x_shape[-1])]
    if bias:
        shapes.append((out,))
    inputs: list[Tensor | None] = []
    for shape in shapes:
        inputs.append(torch.randn(shape, generator=generator, dtype=dtype).requires_grad_())
    return inputs if bias else [*inputs, None]


def with_gradients(
    function: LinearFunction, x: Tensor, weight: Tensor, bias: Tensor | None
) -> list[Tensor]:
    """The result, and the gradients of all inputs."""
    result = function(x, weight, bias)
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return [result, *torch.autograd.grad((result * result).sum(), inputs)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 7, 24), (1, 1, 24), (24,)], ids=str)
def test_results_and_gradients_equal_pytorch(shape: tuple[int, ...], bias: bool) -> None:
    for out in (8, 24, 130):
        inputs = random_inputs(shape, out, bias)
        x, weight, _ = inputs
        assert module.uses_onednn(x, weight)
        actual, expected = with_gradients(linear, *inputs), with_gradients(F.linear, *inputs)
        for a, e in zip(actual, expected):
            assert a.shape == e.shape
            assert (a - e).norm() <= 1e-6 * e.norm()


def test_inputs_need_not_be_contiguous() -> None:
    x, weight = torch.randn(3, 24, 5).transpose(1, 2), torch.randn(24, 8).t()
    assert torch.allclose(linear(x, weight), F.linear(x, weight), atol=1e-5)


def test_a_gradient_that_is_a_slice_of_a_tensor_is_made_contiguous(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Concatenation has such a gradient, with which oneDNN would take hundreds of times as long."""
    inputs = random_inputs((50, 24), 8, bias=True)
    multiply = module.multiply
    factors: list[Tensor] = []

    def record_factors(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        factors.extend((x, weight))
        return multiply(x, weight, bias)

    monkeypatch.setattr(module, "multiply", record_factors)
    other_part = torch.randn(50, 1)
    torch.cat([linear(*inputs), other_part], 1).square().sum().backward()
    assert factors
    assert all(factor.is_contiguous() or factor.t().is_contiguous() for factor in factors)


def test_only_inputs_that_require_a_gradient_get_one() -> None:
    x, weight, bias = random_inputs((5, 24), 8, bias=True)
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    assert torch.allclose(x.grad, weight.sum(0).expand(5, -1), atol=1e-5)
    assert torch.equal(bias.grad, torch.full((8,), 5.0))


def test_an_empty_input_has_an_empty_output_and_no_gradient() -> None:
    x, weight, bias = random_inputs((2, 0, 24), 8, bias=True)
    result = linear(x, weight, bias)
    assert result.shape == (2, 0, 8)
    result.sum().backward()
    assert not weight.grad.any()


def test_float64_and_autocast_use_pytorch() -> None:
    x, weight, bias = random_inputs((5, 24), 8, bias=True, dtype=torch.float64)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    layer = Linear(24, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.float()).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.fair_sample
def test_layers_compile_and_export_as_standard_linear_layers() -> None:
    layer = nn.Sequential(Linear(24, 48), nn.ReLU(), Linear(48, 8))
    x = torch.randn(5, 24)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    exported = torch.export.export(layer, (x,))
    assert any("aten.linear" in str(node.target) for node in exported.graph.nodes)


def test_the_flop_counter_of_pytorch_counts_its_operations() -> None:
    x, weight, bias = random_inputs((2, 3, 24), 8, bias=True)
    with FlopCounterMode(display=False) as count:
        linear(x, weight, bias).sum().backward()
    assert count.get_total_flops() == 3 * 2 * 6 * 24 * 8
