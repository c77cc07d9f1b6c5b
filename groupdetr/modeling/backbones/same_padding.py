"""Convolutions whose padding depends on the size of the map, as TensorFlow's "SAME" does.

The result has H/stride rows and W/stride columns, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def pad_same(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Pad a map [B,C,H,W] with zeros for a convolution. An odd row or column is added at the end.

    The arguments are those of the convolution, (vertical, horizontal).
    """
    padding: list[int] = []
    for side, kernel, step, gap in zip(x.shape[-2:], kernel_size, stride, dilation):
        outputs = -(-side // step)  # rounded up
        needed = (outputs - 1) * step + (kernel - 1) * gap + 1
        total = max(needed - side, 0)
        # PyTorch takes the padding of the last axis first.
        padding = [total // 2, total - total // 2, *padding]
    return F.pad(x, padding)


class Conv2dSame(nn.Conv2d):
    """A convolution [B,C,H,W] -> [B,C',H/stride,W/stride] that pads its input by `pad_same`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self.kernel_size, self.stride, self.dilation))
