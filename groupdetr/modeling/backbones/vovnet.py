"""VoVNetV2-99 with eSE (Lee and Park, CVPR 2020, arXiv 1911.06667).

As in DD3D and PETR, every block has eSE.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.errors import WeightsError
from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.pretrained import (
    OTHER_WEIGHTS,
    load_all_weights,
    read_backbone_file,
)
from groupdetr.modeling.backbones.pretrained_layouts import DD3D_VOVNET, PETR_VOVNET
from groupdetr.modeling.gradient_checkpointing import run_layer
from groupdetr.modeling.module_list import ModuleList


@dataclass(frozen=True)
class VoVNetWidths:
    """The channels and blocks of a VoVNet. Its stages have strides 4, 8, 16 and 32."""

    stem: int
    conv_channels: tuple[int, ...]  # channels of the convolutions inside the blocks of each stage
    out_channels: tuple[int, ...]  # channels of the output of each stage
    blocks: tuple[int, ...]  # number of blocks of each stage


V99 = VoVNetWidths(
    stem=64,
    conv_channels=(128, 160, 192, 224),
    out_channels=(256, 512, 768, 1024),
    blocks=(1, 3, 9, 3),
)
CONVS = 5  # convolutions of a block
STRIDE = 32  # of the last stage; images are padded to a multiple of it


def vovnet99(
    pretrained: bool | str, recompute: bool, augment: nn.Module, widths: VoVNetWidths = V99
) -> Backbone:
    """Return VoVNetV2-99 with the maps of strides 16 and 32.

    Nothing is frozen except the statistics of batch norms. ``pretrained`` is the path of a local
    file of PETR, FCOS3D or DD3D; the hub has no weights. ``augment`` as in `Backbone`. Other
    ``widths`` give a smaller network of the same kind.
    """
    network = VoVNet(widths, recompute)
    if pretrained is True:
        raise WeightsError(
            "there are no weights of VoVNetV2-99 to download",
            "the Hugging Face hub",
            OTHER_WEIGHTS,
        )
    if pretrained:
        load_all_weights(network, read_backbone_file(pretrained, (PETR_VOVNET, DD3D_VOVNET)))
    return Backbone(network, widths.out_channels[-2:], multiple=STRIDE, augment=augment)


class FixedStatisticsNorm(nn.Module):
    """Batch norm with fixed statistics and trained scale and shift. `NormedConv` applies it."""

    # [C] each
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of every channel, [C] each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class NormedConv(nn.Module):
    """A convolution without bias, its batch norm and ReLU: [B,in,H,W] -> [B,out,.,.].

    The batch norm is folded into the convolution.
    """

    def __init__(self, in_channels: int, channels: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=False)
        self.norm = FixedStatisticsNorm(channels)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.norm()
        weight = self.conv.weight * scale.view(-1, 1, 1, 1)
        return F.relu(self.conv._conv_forward(x, weight, shift), inplace=True)


class SqueezeExcite(nn.Module):
    """Effective squeeze-and-excitation (eSE): every channel is multiplied by a gate.

    The gates are computed from the means of all channels. [B,C,H,W] -> [B,C,H,W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class OSABlock(nn.Module):
    """One-shot aggregation (OSA): five convolutions in a row, all concatenated once at the end.

    The input is concatenated, too. With ``residual``, it is also added to the output, as in all
    blocks of a stage but the first.
    """

    def __init__(self, in_channels: int, conv_channels: int, channels: int, residual: bool) -> None:
        super().__init__()
        widths = [in_channels, *[conv_channels] * CONVS]
        self.convs = nn.ModuleList(NormedConv(a, b) for a, b in pairwise(widths))
        self.concat = NormedConv(sum(widths), channels, size=1)
        self.ese = SqueezeExcite(channels)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.convs:
            features.append(conv(features[-1]))
        joined = self.ese(self.concat(torch.cat(features, dim=1)))
        return joined + x if self.residual else joined


class VoVNet(nn.Module):
    """Images [B,3,H,W] -> the maps of the last two stages, of strides 16 and 32.

    The sides of the images are multiples of 32. ``recompute`` turns on gradient checkpointing of
    every block, as in PETR's code.
    """

    def __init__(self, widths: VoVNetWidths, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        channels = 2 * widths.stem
        self.stem = nn.Sequential(
            NormedConv(3, widths.stem, stride=2),
            NormedConv(widths.stem, widths.stem),
            NormedConv(widths.stem, channels, stride=2),
        )
        self.stages: ModuleList[ModuleList[OSABlock]] = ModuleList()
        stage_widths = zip(widths.conv_channels, widths.out_channels, widths.blocks, strict=True)
        for conv_channels, out_channels, num_blocks in stage_widths:
            blocks: ModuleList[OSABlock] = ModuleList()
            for index in range(num_blocks):
                blocks.append(OSABlock(channels, conv_channels, out_channels, residual=index > 0))
                channels = out_channels
            self.stages.append(blocks)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        recompute = self.recompute and self.training
        x = self.stem(pixels)
        maps = []
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
            for block in stage:
                x = run_layer(block, x, recompute=recompute)
            maps.append(x)
        return maps[-2:]
