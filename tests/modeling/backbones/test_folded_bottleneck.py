"""Bottleneck blocks whose convolutions add the shortcut and apply the ReLUs."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import groupdetr.modeling.flop_formulas  # noqa: F401 (formulas of oneDNN)
from groupdetr.modeling.backbones.folded_bottleneck import FoldedBottleneck, fold_bottlenecks
from groupdetr.modeling.backbones.frozen_batch_norm import freeze_norms
from groupdetr.modeling.linear import ONEDNN_AVAILABLE


def small_resnet(**options: object) -> nn.Module:
    """Return a ResNet of two bottleneck blocks per stage, with random norms."""
    network = timm.create_model(
        "resnet26", channels=(4, 4, 8, 8), num_classes=0, global_pool="", **options
    )
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


@pytest.mark.skipif(not ONEDNN_AVAILABLE, reason="oneDNN computes them on x86 only")
def test_a_folded_network_has_the_maps_and_the_names_of_that_of_timm() -> None:
    network = small_resnet()
    x = torch.randn(2, 3, 65, 97).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = network(x)
    names = list(network.state_dict())
    fold_bottlenecks(freeze_norms(network), Bottleneck)
    network.to(memory_format=torch.channels_last)
    assert sum(isinstance(module, FoldedBottleneck) for module in network.modules()) == 8
    assert [name for name in names if "num_batches" not in name] == list(network.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network(x), expected)  # with gradients, in the usual way


@pytest.mark.skipif(not ONEDNN_AVAILABLE, reason="oneDNN computes them on x86 only")
def test_a_block_leaves_its_input_as_it_is_and_counts_its_operations() -> None:
    network = small_resnet()
    fold_bottlenecks(freeze_norms(network), Bottleneck)
    block = network.layer1[1].to(memory_format=torch.channels_last)
    x = torch.randn(1, 16, 20, 30).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with torch.inference_mode(), FlopCounterMode(display=False) as fused:
        block(x)
    assert torch.equal(x, before)
    with FlopCounterMode(display=False) as usual:
        block(x)
    assert fused.get_total_flops() == usual.get_total_flops() > 0


def test_blocks_with_other_parts_are_left_alone() -> None:
    network = freeze_norms(small_resnet(block_args={"attn_layer": "se"}))
    fold_bottlenecks(network, Bottleneck)
    assert not any(isinstance(module, FoldedBottleneck) for module in network.modules())
