"""Simple feature pyramid (Li et al., ViTDet, ECCV 2022, arXiv 2203.16527): four scales from one map."""

from __future__ import annotations

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimplePyramid(nn.Module):
    """A map [B,width,H,W] of stride 16 -> maps [B,channels,.,.] of strides 8, 16, 32 and 64.

    As in PaddleDetection: the coarsest is every second pixel of the one before it. There an odd last row or column is
    left out of strides 32 and 64; here it is not.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, stride=2), *_smoothing(width // 2, channels)
        )
        self.same = nn.Sequential(*_smoothing(width, channels))
        self.coarse = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), *_smoothing(width, channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.fine(x), self.same(x), self.coarse(x)]
        return [*maps, maps[-1][:, :, ::2, ::2]]


def _smoothing(width: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
    ]
