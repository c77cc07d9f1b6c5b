"""Mask2Former's pixel decoder: a deformable encoder, and the features that masks are computed from.

The encoder has the three levels of strides 8, 16 and 32. (Cheng et al., CVPR 2022, Sec. 3.2)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.modeling.encoders.deformable_encoder import DeformableEncoder
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.encoders.feature_projection import NORM_GROUPS
from groupdetr.ops.position import image_embedding
from groupdetr.structures.images import Images
from groupdetr.structures.masks import MaskFeatures
from groupdetr.structures.memory import Memory, PixelMemory


class PixelDecoder(Encoder[Images]):
    """Feature maps of strides 4, 8, 16 and 32 -> `PixelMemory`, with levels from coarse to fine.

    As in the published code, it ignores padding, and it computes in the float32 of its weights
    under any autocast. In training, the mask features are sampled at ``num_points`` random points,
    where masks are compared.
    """

    def __init__(self, encoder: DeformableEncoder, finest_channels: int, num_points: int) -> None:
        super().__init__()
        levels, channels = encoder.level_embed.shape
        self.encoder = encoder
        self.num_points = num_points
        self.lateral = nn.Sequential(
            nn.Conv2d(finest_channels, channels, kernel_size=1, bias=False),
            nn.GroupNorm(NORM_GROUPS, channels),
        )
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(NORM_GROUPS, channels),
        )
        self.pixels = nn.Conv2d(channels, channels, kernel_size=1)
        # The encoder has a level embedding of its own; this one is for the decoder's queries.
        self.level_embed = nn.Parameter(torch.randn(levels, channels))
        for conv in (self.lateral[0], self.smooth[0], self.pixels):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_uniform_(conv.weight, a=1)
        assert self.pixels.bias is not None
        nn.init.zeros_(self.pixels.bias)

    @property
    def project(self) -> nn.Module:
        """The projection of feature maps in front of the encoder."""
        return self.encoder.project

    def set_position_embedding(self, temperature: float, offset: float) -> None:
        self.encoder.set_position_embedding(temperature, offset)

    def forward(self, features: list[Tensor], images: Images) -> PixelMemory:
        with torch.autocast(images.padding.device.type, enabled=False):
            finest, *coarser = (x.to(self.level_embed.dtype) for x in features)
            no_padding = torch.zeros_like(images.padding[:, :1, :1])
            maps = self.encoder.project(coarser[::-1])
            memory = self.encoder.encode(maps, no_padding, padded=False)
            pixels = self.compute_mask_features(finest, memory)
            mask_features = MaskFeatures(pixels, image_sizes(images.padding))
            if self.training:
                mask_features = mask_features.with_points(self.num_points)
            return self.build_memory(memory, mask_features)

    def compute_mask_features(self, finest: Tensor, memory: Memory) -> Tensor:
        """Return [B,C,h,w]: the finest feature map plus the finest encoded level, as in an FPN."""
        encoded = memory.levels(memory.tokens)[-1].permute(0, 3, 1, 2)
        encoded = F.interpolate(encoded, finest.shape[-2:], mode="bilinear", align_corners=False)
        return self.pixels(F.relu(self.smooth(self.lateral(finest) + encoded)))

    def build_memory(self, memory: Memory, mask_features: MaskFeatures) -> PixelMemory:
        """Return the memory for the decoder.

        Unlike in the encoder, the level embedding is added to the tokens and not to their
        position embedding.
        """
        level_embeds, positions = [], []
        for level_embed, (height, width) in zip(self.level_embed, memory.shapes):
            level_embeds.append(level_embed.expand(height * width, -1))
        for padding in memory.levels(memory.padding):
            positions.append(self.embed_positions(padding))
        return PixelMemory.from_tokens(
            tokens=memory.tokens + torch.cat(level_embeds),
            position=torch.cat(positions, 1),
            padding=memory.padding,
            shapes=memory.shapes,
            padded=False,
            mask_features=mask_features,
        )

    def embed_positions(self, padding: Tensor) -> Tensor:
        """Return the position embedding of a level with padding [B,H,W]: [B,H*W,C]."""
        channels = self.level_embed.shape[1]
        encoder = self.encoder
        return image_embedding(padding, channels, encoder.temperature, encoder.offset).flatten(1, 2)


def image_sizes(padding: Tensor) -> Tensor:
    """Return the height and width of every image without its padding, [B,2] int64.

    ``padding`` [B,H,W] bool.
    """
    heights = (~padding).any(2).sum(1)
    widths = (~padding).any(1).sum(1)
    return torch.stack([heights, widths], dim=1)
