"""Images are padded to a multiple of a number of pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.backbones.backbone import next_multiple, pad_to_multiple

WINDOW = 12  # tokens


class Stages(nn.Module):
    """Three stages of strides 4, 8 and 16, each with two blocks of windows."""

    def forward(self, x: Tensor) -> Tensor:
        for stride in (4, 2, 2):
            x = F.max_pool2d(pad_to_multiple(x, stride), stride)
            height, width = x.shape[2:]
            for _ in range(2):
                x = pad_to_multiple(x, WINDOW)[..., :height, :width]
        return x


@pytest.mark.parametrize(
    ("side", "size", "multiple"), [(1, 4, 4), (4, 4, 4), (5, 4, 8), (12, 1, 12)]
)
def test_a_side_becomes_the_next_multiple(side: int, size: int, multiple: int) -> None:
    assert next_multiple(side, size) == multiple
    assert pad_to_multiple(torch.ones(1, side, 3), size).shape[1] == multiple


def test_the_sizes_of_maps_are_short_formulas_in_an_export_for_images_of_any_size() -> None:
    """Formulas that grow with every block keep PyTorch simplifying them for hours."""
    any_size = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        Stages(),
        (torch.rand(1, 3, 61, 90),),
        dynamic_shapes=({2: any_size, 3: any_size},),
        strict=False,
    )
    ((output,),) = program.graph.output_node().args
    height = output.meta["val"].shape[2]
    (side,) = height.node.expr.free_symbols
    assert str(height) == f"((({side} - 1)//16)) + 1"
