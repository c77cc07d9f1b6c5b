"""What the writers of formats have to translate by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groupdetr.deployment.exported_detector import open_exported
from groupdetr.deployment.graph import DetectionGraph
from groupdetr.deployment.runtimes import FORMATS, ExportOptions


class HalfSide(nn.Module):
    """Images [B,3,H,W] -> a number: half of the width, rounded up."""

    outputs = ("half",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        half = -(-images.shape[3] // 2)
        return (torch.full((1,), half) + images[0, 0, 0, :1].long(),)


@pytest.mark.parametrize("format", ["torch-export", "onnx", "openvino"])
def test_half_of_an_odd_side_is_rounded_as_python_does(format: str, tmp_path: Path) -> None:
    """ONNX's own division rounds -13 / 2 to -6."""
    options = ExportOptions(False, None, False, None, example_size=(40, 64))
    file = tmp_path / f"half{FORMATS[format].ending}"
    graph = cast(DetectionGraph, HalfSide())
    FORMATS[format].write(graph, options, {"outputs": ["half"]}, file)
    runtime, _ = open_exported(file)
    for width, half in ((12, 6), (13, 7)):
        outputs = runtime(np.zeros((1, 3, 40, width), dtype=np.float32))
        assert outputs["half"].tolist() == [half]
