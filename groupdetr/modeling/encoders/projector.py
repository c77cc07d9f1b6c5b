"""The projector of LW-DETR and RF-DETR: maps of a plain ViT to the levels that queries attend to.

(Chen et al. 2024, arXiv 2406.03459) There is no transformer encoder after it. The block of
convolutions is YOLOv8's C2f, without shortcuts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.layer_norm_2d import LayerNorm2d
from groupdetr.modeling.module_list import ModuleList
from groupdetr.structures.images import Images
from groupdetr.structures.memory import Memory

NUM_BOTTLENECKS = 3
MAX_UPSAMPLED_WIDTH = 512  # of LW-DETR, see `reduce_and_upsample`

# The number of channels -> the norm after a convolution
Norm = Callable[[int], nn.Module]
# What gives a map the size of a level: the width of the map and the norm -> the module, and the
# width of its output.
Resampling = Callable[[int, Norm], tuple[nn.Module, int]]


def channel_norm(channels: int) -> LayerNorm2d:
    """Return a layer norm over the channels of every pixel, [B,C,H,W] -> [B,C,H,W]."""
    return LayerNorm2d(channels, eps=1e-6)


class Projector(Encoder[Images]):
    """Maps of one size -> `Memory` with L levels of ``channels``.

    ``in_channels`` are those of the maps. ``resamplings`` are those of the levels, from fine to
    coarse, and ``norm`` creates the norms of the convolutions.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        resamplings: Sequence[Resampling],
        norm: Norm,
    ) -> None:
        super().__init__()
        self.levels: ModuleList[ProjectorLevel] = ModuleList(
            ProjectorLevel(in_channels, channels, resampling, norm) for resampling in resamplings
        )

    def forward(self, features: list[Tensor], images: Images) -> Memory:
        return self.encode(self.project(features), images.padding, images.padded)

    def project(self, features: list[Tensor]) -> list[Tensor]:
        """Return the maps of all levels [B,C,H_l,W_l]."""
        return [level(features) for level in self.levels]

    def encode(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> Memory:
        """Return the tokens of all levels. ``padding`` [B,H,W] is that of the images."""
        tokens, paddings = [], []
        for x in maps:
            level_padding = F.interpolate(padding[:, None].float(), size=x.shape[-2:])[:, 0].bool()
            tokens.append(x.flatten(2).transpose(1, 2))
            paddings.append(level_padding.flatten(1))
        all_tokens = torch.cat(tokens, 1)
        return Memory.from_tokens(
            tokens=all_tokens,
            # Deformable attention does not use the position embedding of tokens.
            position=all_tokens.new_zeros(()).expand(all_tokens.shape),
            padding=torch.cat(paddings, 1),
            shapes=tuple((x.shape[2], x.shape[3]) for x in maps),
            padded=padded,
        )


class ProjectorLevel(nn.Module):
    """Maps [B,C_m,H,W] -> one level [B,channels,H',W'].

    The maps are resampled to the size of the level and concatenated. A C2f block and a layer norm
    follow.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        resampling: Resampling,
        norm: Norm,
    ) -> None:
        super().__init__()
        resample: list[nn.Module] = []
        total_width = 0
        for width in in_channels:
            module, resampled_width = resampling(width, norm)
            resample.append(module)
            total_width += resampled_width
        self.resample = nn.ModuleList(resample)
        self.c2f = C2f(total_width, channels, norm)
        self.norm = channel_norm(channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [resample(x) for resample, x in zip(self.resample, features, strict=True)]
        return self.norm(self.c2f(torch.cat(maps, dim=1)))


class ConvNormAct(nn.Module):
    """Convolution without bias, norm and activation: [B,C,H,W] -> [B,C',H/stride,W/stride]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        norm: Norm,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            bias=False,
        )
        self.norm = norm(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class C2f(nn.Module):
    """YOLOv8's block of convolutions: [B,in_channels,H,W] -> [B,channels,H,W].

    One half of the channels goes through a chain of bottlenecks. Both halves and the output of
    every bottleneck are concatenated and projected.
    """

    def __init__(self, in_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNormAct(in_channels, 2 * half, 1, 1, norm, nn.SiLU())
        self.bottlenecks: ModuleList[Bottleneck] = ModuleList(
            Bottleneck(half, norm) for _ in range(NUM_BOTTLENECKS)
        )
        self.conv2 = ConvNormAct((2 + NUM_BOTTLENECKS) * half, channels, 1, 1, norm, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = [*self.conv1(x).chunk(2, dim=1)]
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.conv2(torch.cat(parts, dim=1))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions without a shortcut, [B,C,H,W] -> [B,C,H,W]."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, 3, 1, norm, nn.SiLU())
        self.conv2 = ConvNormAct(channels, channels, 3, 1, norm, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


def upsample(width: int, _norm: Norm) -> tuple[nn.Module, int]:
    """Return a transposed convolution to twice the size, with half of the width."""
    conv = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
    return nn.Sequential(OrderedDict(upsample=conv)), width // 2


def reduce_and_upsample(width: int, norm: Norm) -> tuple[nn.Module, int]:
    """Return `upsample`. A map of more than 512 channels is first projected to half of its width.

    That saves most of the time in LW-DETR-xlarge. RF-DETR does not have it.
    """
    if width <= MAX_UPSAMPLED_WIDTH:
        return upsample(width, norm)
    half = width // 2
    reduce = ConvNormAct(width, half, 1, 1, norm, nn.ReLU())
    conv = nn.ConvTranspose2d(half, half // 2, kernel_size=2, stride=2)
    return nn.Sequential(OrderedDict(reduce=reduce, upsample=conv)), half // 2


def keep_size(width: int, _norm: Norm) -> tuple[nn.Module, int]:
    """Return the identity."""
    return nn.Identity(), width


def downsample(width: int, norm: Norm) -> tuple[nn.Module, int]:
    """Return a convolution to half of the size, with the same width."""
    conv = ConvNormAct(width, width, 3, 2, norm, nn.ReLU())
    return nn.Sequential(OrderedDict(downsample=conv)), width


# The levels by their names, from fine to coarse. "P4" has the stride of the maps, usually 16.
RF_DETR_LEVELS: dict[str, Resampling] = {
    "P3": upsample,
    "P4": keep_size,
    "P5": downsample,
}
LW_DETR_LEVELS: dict[str, Resampling] = {**RF_DETR_LEVELS, "P3": reduce_and_upsample}
