"""VoVNetV2-99 with eSE (Lee and Park, CVPR 2020, arXiv 1911.06667), as DD3D and PETR have it: eSE in every block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.pretrained import fill, read
from groupdetr.modeling.backbones.pretrained_layouts import DD3D_VOVNET, PETR_VOVNET


@dataclass(frozen=True)
class Widths:
    """Of a VoVNet: channels and blocks of the stages, of strides 4, 8, 16 and 32."""

    stem: int
    inside: tuple[int, ...]  # of the convolutions of a block
    outside: tuple[int, ...]  # of what a block hands on
    blocks: tuple[int, ...]


V99 = Widths(
    stem=64, inside=(128, 160, 192, 224), outside=(256, 512, 768, 1024), blocks=(1, 3, 9, 3)
)
CONVS = 5  # of a block
STRIDE = 32  # of the last stage: images are padded to a multiple of it


def vovnet99(
    pretrained: bool | str, recompute: bool, augment: nn.Module, widths: Widths = V99
) -> Backbone:
    """VoVNetV2-99's maps of strides 16 and 32; nothing is frozen but what batch norm counts.

    ``pretrained``: the path of a local file of PETR, FCOS3D or DD3D; there is none on the hub. ``augment`` is the
    backbone's. Other ``widths`` make a smaller one of its kind.
    """
    network = VoVNet(widths, recompute)
    if pretrained is True:
        remedy = (
            "pass a local file with --pretrained-backbone FILE (pretrained_backbone=FILE), or none"
        )
        raise WeightsError(
            "there are no weights of VoVNetV2-99 to fetch", "the Hugging Face hub", remedy
        )
    if pretrained:
        fill(network, read(pretrained, (PETR_VOVNET, DD3D_VOVNET)))
    return Backbone(network, widths.outside[-2:], multiple=STRIDE, augment=augment)


class LearningNorm(nn.Module):
    """Batch norm with fixed statistics whose scale and shift learn. `NormedConv` applies it."""

    running_mean: Tensor  # [C], as the next
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of every channel, [C] each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv(nn.Module):
    """A convolution without a bias, its norm, which is folded into it, and ReLU: [B,in,H,W] -> [B,out,.,.]."""

    def __init__(self, in_channels: int, channels: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=False)
        self.norm = LearningNorm(channels)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.norm()
        return F.relu(
            self.conv._conv_forward(x, self.conv.weight * scale.view(-1, 1, 1, 1), shift),
            inplace=True,
        )


class SqueezeExcite(nn.Module):
    """Every channel weighted by what all of them are on average (eSE). [B,C,H,W] -> the same"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class Block(nn.Module):
    """One-shot aggregation: what goes in and what five convolutions in a row make of it, joined once.

    ``residual``: it goes on beside, too, as in all blocks of a stage but the first.
    """

    def __init__(self, in_channels: int, inside: int, channels: int, residual: bool) -> None:
        super().__init__()
        widths = [in_channels, *[inside] * CONVS]
        self.convs = nn.ModuleList(NormedConv(a, inside) for a in widths[:-1])
        self.join, self.weigh, self.residual = (
            NormedConv(sum(widths), channels, 1),
            SqueezeExcite(channels),
            residual,
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convs:
            seen.append(conv(seen[-1]))
        joined = self.weigh(self.join(torch.cat(seen, dim=1)))
        return joined + x if self.residual else joined


class VoVNet(nn.Module):
    """Images [B,3,H,W], whose sides are multiples of 32 -> the maps of the last two stages, of strides 16 and 32.

    ``recompute``: gradient checkpointing, block by block, as PETR's code.
    """

    def __init__(self, widths: Widths, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        stem, channels = widths.stem, 2 * widths.stem
        self.stem = nn.Sequential(
            NormedConv(3, stem, stride=2),
            NormedConv(stem, stem),
            NormedConv(stem, channels, stride=2),
        )
        self.stages = nn.ModuleList()
        for inside, outside, count in zip(
            widths.inside, widths.outside, widths.blocks, strict=True
        ):
            ins = [channels, *[outside] * (count - 1)]
            self.stages.append(
                nn.ModuleList(Block(a, inside, outside, i > 0) for i, a in enumerate(ins))
            )
            channels = outside

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x, maps = self.stem(pixels), []
        for i, stage in enumerate(self.stages):
            if i:
                x = F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
            for block in stage:  # type: ignore[attr-defined]
                x = self.run(block, x)
            maps.append(x)
        return maps[-2:]

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        return (
            checkpoint(block, x, use_reentrant=False)
            if self.recompute and self.training
            else block(x)
        )
