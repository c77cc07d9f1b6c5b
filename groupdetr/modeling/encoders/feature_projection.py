"""From a backbone's feature maps, each with its own channels, to maps of one width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 32


class Pyramid(nn.Module):
    """Deformable DETR's: every map through a 1x1 convolution and a norm, and coarser levels from the last map as it
    came, each of half the size of the one before. [B,C_l,H,W] to ``num_levels`` of [B,C,H,W]."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_levels: int) -> None:
        super().__init__()
        extra = num_levels - len(in_channels)
        same = [nn.Conv2d(width, channels, kernel_size=1) for width in in_channels]
        coarser = [
            nn.Conv2d(width, channels, kernel_size=3, stride=2, padding=1)
            for width in [in_channels[-1], *[channels] * extra][:extra]
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, channels)) for conv in same + coarser
        )
        for conv in same + coarser:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = [level(x) for level, x in zip(self.levels, features)]
        last = features[-1]
        for level in self.levels[len(features) :]:
            last = level(last)
            maps.append(last)
        return maps


class TopDown(nn.Module):
    """Of two maps the finer one, which the coarser was added to (FPN, Lin et al. 2017): [B,C_l,.,.] to [B,C,H,W]."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Conv2d(width, channels, kernel_size=1) for width in in_channels
        )
        self.smooth = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        for conv in (*self.lateral, self.smooth):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        fine, coarse = (conv(x) for conv, x in zip(self.lateral, features, strict=True))
        return self.smooth(fine + F.interpolate(coarse, fine.shape[-2:]))


class AsTheyAre(nn.Module):
    """For backbones whose maps have that width already."""

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return features
