"""The sizes of levels as a tensor, also in a graph that is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groupdetr.ops.level_sizes import level_sizes


class Sizes(nn.Module):
    """A map [B,H,W] -> the sizes of two levels."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:]
        return level_sizes(((height, width), (height // 2, width // 2)), x.dtype, x.device)


def test_an_exported_graph_has_the_sizes_of_the_map_that_it_gets() -> None:
    any_size = torch.export.Dim.DYNAMIC
    example = (torch.zeros(1, 8, 12),)
    program = torch.export.export(
        Sizes(), example, dynamic_shapes={"x": {1: any_size, 2: any_size}}, strict=False
    )
    other = torch.zeros(1, 20, 30)
    assert program.module()(other).tolist() == [[30, 20], [15, 10]]
    assert Sizes()(other).tolist() == [[30, 20], [15, 10]]
