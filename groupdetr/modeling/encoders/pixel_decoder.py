"""Mask2Former's pixel decoder: a deformable encoder on three levels, and the pixels that masks are told of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder
from groupdetr.modeling.encoders.feature_projection import NORM_GROUPS
from groupdetr.ops.position import image_embedding
from groupdetr.structures.masks import Canvas
from groupdetr.structures.memory import Memory, PixelMemory


class PixelDecoder(nn.Module):
    """Feature maps of strides 4, 8, 16 and 32, and the images' padding [B,H,W] -> `PixelMemory`, coarse to fine.

    As published: it knows nothing of padding, and computes in its weights' float32 under any autocast. In training the
    canvas has ``num_points`` points where masks are compared.
    """

    def __init__(self, encoder: DeformableEncoder, finest_channels: int, num_points: int) -> None:
        super().__init__()
        levels, channels = encoder.level.shape
        self.encoder, self.num_points = encoder, num_points
        self.lateral = nn.Sequential(
            nn.Conv2d(finest_channels, channels, kernel_size=1, bias=False),
            nn.GroupNorm(NORM_GROUPS, channels),
        )
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(NORM_GROUPS, channels),
        )
        self.pixels = nn.Conv2d(channels, channels, kernel_size=1)
        self.level = nn.Parameter(torch.randn(levels, channels))  # that queries see
        for conv in (self.lateral[0], self.smooth[0], self.pixels):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
        nn.init.zeros_(self.pixels.bias)  # type: ignore[arg-type]

    @property
    def project(self) -> nn.Module:
        """What is in front of the encoder."""
        return self.encoder.project

    def forward(self, features: list[Tensor], padding: Tensor, padded: bool = True) -> PixelMemory:
        del padded
        with torch.autocast(padding.device.type, enabled=False):
            finest, *coarser = (x.to(self.level.dtype) for x in features)
            memory = self.encoder(coarser[::-1], torch.zeros_like(padding[:, :1, :1]), padded=False)
            canvas = Canvas(self.drawn(finest, memory), sizes(padding))
            return self.seen(
                memory, canvas.with_points(self.num_points) if self.training else canvas
            )

    def drawn(self, finest: Tensor, memory: Memory) -> Tensor:
        """The pixels that masks are told of, [B,C,h,w]."""
        below = memory.levels(memory.tokens)[-1].permute(0, 3, 1, 2)
        below = F.interpolate(below, finest.shape[-2:], mode="bilinear", align_corners=False)
        return self.pixels(F.relu(self.smooth(self.lateral(finest) + below)))

    def seen(self, memory: Memory, canvas: Canvas) -> PixelMemory:
        """What queries look at: tokens that know their level, whose position does not tell it."""
        own = torch.cat(
            [level.expand(h * w, -1) for level, (h, w) in zip(self.level, memory.shapes)]
        )
        position = torch.cat([self.place(padding) for padding in memory.levels(memory.padding)], 1)
        return PixelMemory(
            memory.tokens + own,
            position,
            memory.padding,
            memory.shapes,
            padded=False,
            canvas=canvas,
        )

    def place(self, padding: Tensor) -> Tensor:
        """Of a level [B,H,W]: [B,H*W,C]."""
        channels, encoder = self.level.shape[1], self.encoder
        return image_embedding(padding, channels, encoder.temperature, encoder.offset).flatten(1, 2)


def sizes(padding: Tensor) -> Tensor:
    """Padding [B,H,W] to the height and width of every image without it, [B,2] int64."""
    return torch.stack([(~padding).any(2).sum(1), (~padding).any(1).sum(1)], dim=1)
