"""Simple feature pyramid: four scales of one feature map.

(ViTDet, Li et al., ECCV 2022, arXiv 2203.16527)
"""

from __future__ import annotations

from torch import Tensor, nn

from groupdetr.modeling.layer_norm_2d import LayerNorm2d


class SimplePyramid(nn.Module):
    """A map [B,width,H,W] of stride 16 -> maps [B,channels,.,.] of strides 8, 16, 32 and 64.

    As in PaddleDetection, the coarsest map is every second pixel of the one before it. An odd last
    row or column is dropped in strides 32 and 64 by PaddleDetection, and kept by this module.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, stride=2), *_projection(width // 2, channels)
        )
        self.same = nn.Sequential(*_projection(width, channels))
        self.coarse = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), *_projection(width, channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine, same, coarse = self.fine(x), self.same(x), self.coarse(x)
        coarsest = coarse[:, :, ::2, ::2]
        return [fine, same, coarse, coarsest]


def _projection(width: int, channels: int) -> list[nn.Module]:
    """Return a 1x1 and a 3x3 convolution, each followed by a layer norm."""
    return [
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
    ]
