"""Batch norms folded into convolutions: never by old weights, and in graphs for any size."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from groupdetr.modeling.backbones.frozen_batch_norm import (
    NormedConv2dSame,
    freeze_norms,
    is_linear_on_pixels,
)
from groupdetr.modeling.backbones.same_padding import Conv2dSame
from groupdetr.modeling.linear import ONEDNN_AVAILABLE


def folded_network() -> nn.Sequential:
    """Return a convolution and its norm, folded, with random statistics, in evaluation mode."""
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    network = freeze_norms(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm))
    assert isinstance(network, nn.Sequential)
    return network.eval()


def reference(network: nn.Sequential, x: Tensor) -> Tensor:
    """Return the convolution and then the norm, by PyTorch's own functions."""
    norm = network[1]
    convolved = nn.functional.conv2d(x, network[0].weight)
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return nn.functional.batch_norm(convolved, *statistics, eps=norm.eps)


def test_a_network_can_be_pickled_and_then_loads_other_weights() -> None:
    network, other = folded_network(), folded_network()
    copied = pickle.loads(pickle.dumps(network))
    copied.load_state_dict(other.state_dict())
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(copied(x), reference(other, x))


def step_of_an_optimizer(network: nn.Sequential) -> None:
    network(torch.ones(1, 3, 5, 5)).sum().backward()
    torch.optim.AdamW(network.parameters(), lr=0.1).step()


def average_of_weights(network: nn.Sequential) -> None:
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=None)
    average.update_parameters(network)
    with torch.no_grad():
        torch._foreach_lerp_(list(network.parameters()), [torch.rand(4, 3, 3, 3)], 0.5)


def other_state(network: nn.Sequential) -> dict[str, Tensor]:
    return {name: torch.rand_like(tensor) + 0.5 for name, tensor in network.state_dict().items()}


@torch.inference_mode()
def change_in_inference_mode(network: nn.Sequential) -> None:
    network[0].weight.mul_(3)


@torch.no_grad()
def change_scale_in_place(network: nn.Sequential) -> None:
    network[1].weight.mul_(3)
    network[1].update_scale_and_shift()


def training_that_hides_its_changes(network: nn.Sequential) -> None:
    network.train()
    network[0].weight.data.mul_(3)
    network.eval()


def other_parameter(network: nn.Sequential) -> None:
    network[0].weight = nn.Parameter(torch.rand(4, 3, 3, 3))


def other_memory(network: nn.Sequential) -> None:
    network[0].weight.data = torch.rand(4, 3, 3, 3)


CHANGES: tuple[Callable[[nn.Sequential], object], ...] = (
    step_of_an_optimizer,
    average_of_weights,
    change_in_inference_mode,
    change_scale_in_place,
    training_that_hides_its_changes,
    other_parameter,
    other_memory,
    lambda network: network.load_state_dict(other_state(network)),
    lambda network: network.load_state_dict(other_state(network), assign=True),
    lambda network: network.double(),
    lambda network: network.to(torch.bfloat16).float(),
)


@pytest.mark.parametrize("change", CHANGES)
def test_the_folded_weight_follows_every_change(change: Callable[[nn.Sequential], object]) -> None:
    for mode in (torch.no_grad, torch.inference_mode):
        network = folded_network()
        x = torch.randn(2, 3, 9, 11)
        with mode():
            before = network(x)
        torch.testing.assert_close(before, reference(network, x))
        change(network)
        x = x.to(network[0].weight.dtype)
        with mode():
            after = network(x)
        torch.testing.assert_close(after, reference(network, x))
        assert not torch.allclose(after.float(), before, rtol=1e-6, atol=0), "nothing was changed"


def test_the_weight_is_folded_once_in_evaluation_mode_and_not_copied() -> None:
    network = folded_network()
    conv = network[0]
    x = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        network(x)
        folded = conv.folded
        network(x)
    assert folded is not None
    assert conv.folded is folded
    copied = copy.deepcopy(network)
    assert copied[0].folded is None
    with torch.no_grad():
        copied[0].weight.mul_(2)
        torch.testing.assert_close(copied(x), reference(copied, x))
    assert conv.folded is folded


def test_gradients_reach_the_weight_after_an_evaluation() -> None:
    network = folded_network()
    x = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        network(x)
    for _ in ("in evaluation mode", "in training mode"):
        network.zero_grad()
        network(x).square().sum().backward()
        gradient = network[0].weight.grad
        (expected,) = torch.autograd.grad(reference(network, x).square().sum(), network[0].weight)
        torch.testing.assert_close(gradient, expected)
        network.train()


def test_a_frozen_convolution_is_folded_once_and_passes_gradients_on() -> None:
    network = folded_network().requires_grad_(False)
    x = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        network(x)
    folded = network[0].folded
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    assert folded is not None
    assert network[0].folded is folded
    (expected,) = torch.autograd.grad(reference(network, x).square().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_an_exported_graph_has_the_weight_and_not_its_product() -> None:
    network = folded_network()
    x = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        network(x)
    program = torch.export.export(network, (x,))
    assert "0.weight" in program.state_dict
    with torch.no_grad():
        graph = program.module()
        graph.get_parameter("0.weight").mul_(2)
        torch.testing.assert_close(graph(x), reference(network, x))


def random_network(conv: nn.Conv2d | None = None) -> nn.Sequential:
    """Return a convolution and a batch norm with random statistics, in float64.

    By default the convolution has two groups.
    """
    conv = conv or nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)
    norm = nn.BatchNorm2d(6)
    for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(x, 0.5, 2.0)
    return nn.Sequential(conv, norm).double().eval()


def gradients(network: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the images and of the weight of the convolution."""
    weight = network[0].weight
    grad_x, grad_weight = torch.autograd.grad(network(x).square().sum(), (x, weight))
    return grad_x, grad_weight


def test_the_gradients_are_those_of_convolution_and_batch_norm() -> None:
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    network = random_network()
    expected = gradients(network, x)
    torch.testing.assert_close(gradients(freeze_norms(network), x), expected)


@pytest.mark.skipif(not ONEDNN_AVAILABLE, reason="this processor does not use oneDNN")
@pytest.mark.parametrize("out_channels_are_more", [True, False])
def test_a_convolution_of_single_pixels_has_the_gradients_of_float64(
    out_channels_are_more: bool,
) -> None:
    network = random_network(nn.Conv2d(4 if out_channels_are_more else 8, 6, 1, bias=False))
    x = torch.randn(2, network[0].in_channels, 9, 7, dtype=torch.float64, requires_grad=True)
    expected = gradients(network, x)
    folded = freeze_norms(network).float()
    x = x.detach().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert is_linear_on_pixels(x, folded[0].weight, folded[0])
    for actual, exact in zip(gradients(folded, x), expected):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-4)


def test_backward_keeps_the_map_and_the_parameters_only() -> None:
    """The product of weight and scale would be as large as the weight."""
    network = freeze_norms(random_network())
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    inputs = (x, network[0].weight, network[1].scale)
    assert sorted(kept) == sorted(tensor.data_ptr() for tensor in inputs)


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_graph_has_the_results_of_the_network_for_even_and_odd_sides(kernel: int) -> None:
    conv = Conv2dSame(2, 3, kernel, stride=2, bias=False)
    network = freeze_norms(nn.Sequential(conv, nn.BatchNorm2d(3))).eval()
    assert isinstance(network[0], NormedConv2dSame)
    any_size = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        network,
        (torch.zeros(1, 2, 8, 12),),
        dynamic_shapes=({2: any_size, 3: any_size},),
        strict=False,
    )
    graph = program.module()
    for height, width in ((8, 9), (9, 8), (11, 14), (13, 13)):
        x = torch.randn(1, 2, height, width)
        torch.testing.assert_close(graph(x), network(x))
