"""Projections of a backbone's feature maps, which have different widths, to maps of one width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

NORM_GROUPS = 32  # of the group norms, as in Deformable DETR


class MultiScaleProjection(nn.Module):
    """Deformable DETR's projection: [B,C_l,H_l,W_l] -> ``num_levels`` maps [B,C,H_l,W_l].

    A 1x1 convolution and a group norm are applied to every map. If there are fewer maps than
    levels, the remaining levels are computed by 3x3 convolutions of stride 2: the first of them
    from the last map before its projection, the others each from the level before it.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_levels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, channels, kernel_size=1) for width in in_channels]
        for extra in range(num_levels - len(in_channels)):
            width = in_channels[-1] if extra == 0 else channels
            convs.append(nn.Conv2d(width, channels, kernel_size=3, stride=2, padding=1))
        self.levels = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(NORM_GROUPS, channels)) for conv in convs
        )
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = [level(x) for level, x in zip(self.levels, features)]
        last = features[-1]
        for level in self.levels[len(features) :]:
            last = level(last)
            maps.append(last)
        return maps


class FPN(nn.Module):
    """Feature pyramid network of two maps, of which the finer is returned (Lin et al. 2017).

    [B,C_l,H_l,W_l] -> [B,C,H,W].
    """

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
