"""Graphs of backbones for images of any size, as torch.export records them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """A network and what follows it in a detector: its maps become one sequence of tokens."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        channels = [x.shape[1] for x in network(torch.zeros(1, 3, 64, 64))]
        self.projections = nn.ModuleList(nn.Conv2d(number, 8, 1) for number in channels)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.network(pixels)
        return torch.cat([f(x).flatten(2) for f, x in zip(self.projections, maps)], -1)


@torch.no_grad()
def expect_equal_graph(network: nn.Module, sizes: Sequence[tuple[int, int]]) -> None:
    """Record a graph with the first size. For every size, it must compute what the network does."""
    module = Tokens(network).eval()
    any_size = torch.export.Dim.DYNAMIC
    example = torch.rand(1, 3, *sizes[0])
    shapes = ({2: any_size, 3: any_size},)
    graph = torch.export.export(module, (example,), dynamic_shapes=shapes).module()
    for size in sizes:
        pixels = torch.rand(1, 3, *size)
        torch.testing.assert_close(graph(pixels), module(pixels))
