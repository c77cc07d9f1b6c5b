"""ResNets (He et al., CVPR 2016): ResNet-50 as in official detectors, and a small one.

timm has these networks, too. They are written here because most detectors have one of them, and
timm imports torchvision and takes longer to import than PyTorch. Names of submodules and random
weights are those of timm's networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from groupdetr.modeling.backbones.backbone import Backbone
from groupdetr.modeling.backbones.folded_bottleneck import fold_bottlenecks
from groupdetr.modeling.backbones.frozen_batch_norm import freeze_norms
from groupdetr.modeling.backbones.pretrained import load_all_weights, read_backbone_file
from groupdetr.modeling.backbones.pretrained_layouts import RESNET

FROZEN = ("conv1", "layer1")  # not trained in all official detectors
RESNET50 = "resnet50.tv_in1k"  # timm's name
NUM_STAGES = 4
NUM_CLASSES = 1000  # of ImageNet
WIDTHS = (64, 128, 256, 512)  # of the 3 x 3 convolutions of ResNet-50, by stage
DEPTHS = (3, 4, 6, 3)  # its blocks, by stage
EXPANSION = 4  # the channels of a bottleneck's output, divided by its width


def resnet50(
    pretrained: bool | str,
    dilated: bool = False,
    levels: tuple[int, ...] = (4,),
    frozen: tuple[str, ...] = FROZEN,
    multiple: int = 1,
) -> Backbone:
    """Return the stages ``levels`` of ResNet-50 with frozen batch norm and ``frozen`` submodules.

    Stage s has stride 2 ** (s + 1) and 128 * 2 ** s channels. With ``dilated`` (DC5), stage 4 keeps
    stride 16; its first block has dilation 1 and the others 2, as in torchvision. ``pretrained`` is
    True for ImageNet V1 weights from the hub, or the path of a local file with them.
    """
    stages = []
    in_channels = 64
    for number, (width, depth) in enumerate(zip(WIDTHS, DEPTHS), start=1):
        is_dilated = dilated and number == NUM_STAGES
        stride = 1 if number == 1 or is_dilated else 2
        blocks = [Bottleneck(in_channels, width, stride)]
        in_channels = EXPANSION * width
        dilation = 2 if is_dilated else 1
        blocks += [Bottleneck(in_channels, width, dilation=dilation) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*blocks))
    stem = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    network = ResNet(stem, nn.BatchNorm2d(64), stages, in_channels, levels)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            # A block begins as the identity (Goyal et al. 2017).
            nn.init.zeros_(module.bn3.weight)
    if pretrained is True:
        network.load_state_dict(_downloaded_weights(levels))
    elif pretrained:
        load_all_weights(network, read_backbone_file(pretrained, (RESNET,)))
    fold_bottlenecks(freeze_norms(network), Bottleneck)
    channels = [EXPANSION * WIDTHS[level - 1] for level in levels]
    return Backbone(network, channels, frozen, multiple=multiple)


def _downloaded_weights(levels: tuple[int, ...]) -> dict[str, Tensor]:
    """Return ResNet-50's weights from the hub. `WeightsError` if they cannot be downloaded."""
    # Imported here: only downloads need timm.
    from groupdetr.modeling.backbones.timm_weights import create_network

    # timm's network draws random numbers. Those of the detector must not depend on the download.
    with torch.random.fork_rng(devices=[]):
        network = create_network(RESNET50, True, (), features_only=True, out_indices=levels)
    return network.state_dict()


def small_resnet(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    levels: tuple[int, ...] | None = None,
    multiple: int = 1,
    augment: nn.Module | None = None,
) -> Backbone:
    """Return the stages ``levels`` of a small ResNet with group norm, which is never pretrained.

    ``widths`` and ``depths`` are the channels and blocks of its stages. Stage s has stride
    2 ** (s + 1). By default only the last stage is returned.

    Group norm does not mix images, so a batch can be split into micro-batches without a difference.
    The stem has three convolutions and a shortcut averages pixels, as in ResNet-D (He et al., CVPR
    2019).
    """
    levels = levels or (len(widths),)
    # Four stages are created, see `ResNet`.
    num_unused = NUM_STAGES - len(widths)
    widths, depths = (*widths, *[widths[-1]] * num_unused), (*depths, *[1] * num_unused)
    stem_width = widths[0] // 2
    in_channels = 2 * stem_width
    stem = _deep_stem(3 * (stem_width // 4), stem_width, in_channels)
    norm = _norm_of_image(in_channels)
    stages = []
    for number, (width, depth) in enumerate(zip(widths, depths), start=1):
        blocks = [BasicBlock(in_channels, width, stride=1 if number == 1 else 2)]
        blocks += [BasicBlock(width, width, stride=1) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*blocks))
        in_channels = width
    network = ResNet(stem, norm, stages, in_channels, levels)
    channels = [widths[level - 1] for level in levels]
    return Backbone(network, channels, multiple=multiple, augment=augment)


class ResNet(nn.Module):
    """Images [B,3,H,W] -> the maps of the stages ``levels``, from fine to coarse.

    ``conv1`` and ``bn1`` are the stem, and ``channels`` are those of the last stage. All
    convolutions get random weights.
    """

    def __init__(
        self,
        conv1: nn.Module,
        bn1: nn.Module,
        stages: Sequence[nn.Sequential],
        channels: int,
        levels: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.levels = levels
        self.conv1 = conv1
        self.bn1 = bn1
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)
        # Nothing uses the classifier and the stages after the last level. They are created because
        # they draw random numbers, as in timm's network. So one seed gives a detector the same
        # weights whatever the levels are, and the same as in earlier versions of this library.
        nn.Linear(channels, NUM_CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for number in range(levels[-1] + 1, len(stages) + 1):
            delattr(self, f"layer{number}")

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(pixels))))
        maps = []
        for number in range(1, self.levels[-1] + 1):
            x = self.get_submodule(f"layer{number}")(x)
            if number in self.levels:
                maps.append(x)
        return maps


class Bottleneck(nn.Module):
    """The block of ResNet-50, [B,C,H,W] -> [B,4*width,H/stride,W/stride]."""

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        downsample = None
        if stride > 1 or in_channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        return self.act3(x)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, [B,C,H,W] -> [B,width,H/stride,W/stride]."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        downsample = None
        if stride > 1 or in_channels != width:
            downsample = nn.Sequential(
                nn.Identity() if stride == 1 else _average_pool(stride),
                nn.Conv2d(in_channels, width, 1, bias=False),
                _norm_of_image(width),
            )
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = _norm_of_image(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = _norm_of_image(width)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.act2(x)


def _deep_stem(first: int, second: int, channels: int) -> nn.Sequential:
    """Return three 3 x 3 convolutions of these widths, the first one with stride 2."""
    return nn.Sequential(
        nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
        _norm_of_image(first),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        _norm_of_image(second),
        nn.ReLU(inplace=True),
        nn.Conv2d(second, channels, 3, padding=1, bias=False),
    )


def _norm_of_image(channels: int) -> nn.Module:
    """Return a group norm of one group, which normalises all channels of an image together."""
    return nn.GroupNorm(1, channels)


def _average_pool(stride: int) -> nn.Module:
    """Return the mean of 2 x 2 pixels, or of those that there are at the right and bottom edge."""
    return nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
