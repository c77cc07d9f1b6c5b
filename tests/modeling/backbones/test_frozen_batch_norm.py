"""A convolution that pads as TensorFlow does, in a graph for images of any size."""

from __future__ import annotations

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from groupdetr.modeling.backbones.frozen_batch_norm import NormedConv2dSame, freeze_norms


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
