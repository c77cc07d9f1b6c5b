"""Linear layers by oneDNN are PyTorch's, and give way to it where it has something better."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from groupdetr.modeling import linear as module
from groupdetr.modeling.linear import Linear, linear

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]

pytestmark = pytest.mark.skipif(not module.AVAILABLE, reason="PyTorch is built without oneDNN here")


def inputs(
    shape: tuple[int, ...], out: int, bias: bool, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = [shape, (out, shape[-1]), (out,) if bias else None]
    return [s and torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def gradients(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The result, and the gradients of all that goes in."""
    result = call(x, weight, bias)
    return [
        result,
        *torch.autograd.grad(
            (result * result).sum(), [t for t in (x, weight, bias) if t is not None]
        ),
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 7, 24), (1, 1, 24), (24,)], ids=str)
@pytest.mark.parametrize("out", [8, 24, 130])
def test_results_and_gradients_are_those_of_pytorch(
    shape: tuple[int, ...], out: int, bias: bool
) -> None:
    given = inputs(shape, out, bias)
    assert module.multiplies_by_onednn(given[0], given[1])
    for found, expected in zip(gradients(linear, *given), gradients(F.linear, *given)):
        assert found.shape == expected.shape
        assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_views_that_are_not_contiguous_are_taken_as_they_are() -> None:
    x, weight = torch.randn(3, 24, 5).transpose(1, 2), torch.randn(24, 8).t()
    assert torch.allclose(linear(x, weight), F.linear(x, weight), atol=1e-5)


def test_a_gradient_that_is_a_part_of_another_tensor_is_laid_out_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of what is concatenated: as it is, oneDNN would take hundreds of times as long for the weights."""
    given = inputs((50, 24), 8, bias=True)
    multiply, seen = module.multiply, list[Tensor]()

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.extend((x, weight))
        return multiply(x, weight, bias)

    monkeypatch.setattr(module, "multiply", spy)
    beside = torch.randn(50, 1)
    for call in (linear, F.linear):
        torch.cat([call(*given), beside], 1).square().sum().backward()
    assert all(t.is_contiguous() or t.t().is_contiguous() for t in seen)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    x, weight, bias = inputs((5, 24), 8, bias=True)
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    assert torch.allclose(x.grad, weight.sum(0).expand(5, -1), atol=1e-5)
    assert torch.equal(bias.grad, torch.full((8,), 5.0))


def test_nothing_in_is_nothing_out_and_no_gradient() -> None:
    x, weight, bias = inputs((2, 0, 24), 8, bias=True)
    result = linear(x, weight, bias)
    assert result.shape == (2, 0, 8)
    result.sum().backward()
    assert not weight.grad.any()


def test_other_types_and_autocast_are_left_to_pytorch() -> None:
    x, weight, bias = inputs((5, 24), 8, bias=True, dtype=torch.float64)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    layer = Linear(24, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.float()).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.fair_sample
def test_a_compiler_sees_a_plain_linear_layer() -> None:
    layer = nn.Sequential(Linear(24, 48), nn.ReLU(), Linear(48, 8))
    x = torch.randn(5, 24)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    exported = torch.export.export(layer, (x,))
    assert any("aten.linear" in str(node.target) for node in exported.graph.nodes)


def test_pytorch_counts_its_work() -> None:
    x, weight, bias = inputs((2, 3, 24), 8, bias=True)
    with FlopCounterMode(display=False) as count:
        linear(x, weight, bias).sum().backward()
    assert count.get_total_flops() == 3 * 2 * 6 * 24 * 8
