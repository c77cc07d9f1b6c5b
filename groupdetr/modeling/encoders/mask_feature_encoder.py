"""Encoder of RF-DETR-Seg: a memory, and mask features for every decoder layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from groupdetr.criterion.masks import MaskPairBuilder
from groupdetr.modeling.encoders.encoder import Encoder
from groupdetr.modeling.encoders.pixel_decoder import image_sizes
from groupdetr.modeling.encoders.projector import Projector
from groupdetr.modeling.gradient_checkpointing import run_layer
from groupdetr.modeling.linear import Linear
from groupdetr.modeling.module_list import ModuleList
from groupdetr.structures.images import Images
from groupdetr.structures.masks import STRIDE, MaskFeatures
from groupdetr.structures.memory import LayerPixelMemory, Memory


class MaskFeatureBlock(nn.Module):
    """A ConvNeXt block without its MLP, [B,C,h,w] -> [B,C,h,w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = F.gelu(self.pointwise(self.norm(y)))
        return x + y.permute(0, 3, 1, 2)


class MaskFeatureEncoder(Encoder[Images]):
    """The memory of the projector ``encoder``, and mask features of a quarter of the image's size.

    The finest level is resized to that: these are the mask features of the proposals. Every one of
    ``num_layers`` decoder layers has a block, which computes its features from those of the
    previous layer. They depend on the image alone, so they are computed once for all groups. In
    training they are sampled at the points of ``pair_builder``, where masks are compared.
    ``recompute`` runs the forward pass of each block a second time instead of keeping its
    activations.
    """

    def __init__(
        self,
        encoder: Projector,
        channels: int,
        num_layers: int,
        pair_builder: MaskPairBuilder,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.blocks: ModuleList[MaskFeatureBlock] = ModuleList(
            MaskFeatureBlock(channels) for _ in range(num_layers)
        )
        self.pair_builder = pair_builder
        self.recompute = recompute

    def forward(self, features: list[Tensor], images: Images) -> LayerPixelMemory:
        return self.encode(self.project(features), images.padding, images.padded)

    def project(self, features: list[Tensor]) -> list[Tensor]:
        """Return the maps of all levels, see `Projector.project`."""
        return self.encoder.project(features)

    def encode(self, maps: list[Tensor], padding: Tensor, padded: bool = True) -> LayerPixelMemory:
        """Return the memory of projected maps. ``padding`` [B,H,W] is that of the images."""
        memory = self.encoder.encode(maps, padding, padded)
        sizes = image_sizes(padding)
        height, width = padding.shape[-2:]
        pixels = self.compute_pixels(memory, (height // STRIDE, width // STRIDE))
        layers = [MaskFeatures(of_layer, sizes) for of_layer in pixels]
        if self.training:
            layers = self.pair_builder.with_points(layers)
        of_proposals, *of_layers = layers
        return LayerPixelMemory(
            tokens=memory.tokens,
            position=memory.position,
            padding=memory.padding,
            shapes=memory.shapes,
            padded=memory.padded,
            valid_sizes=memory.valid_sizes,
            valid_ratios=memory.valid_ratios,
            mask_features=of_proposals,
            layer_mask_features=tuple(of_layers),
        )

    def compute_pixels(self, memory: Memory, size: tuple[int, int]) -> list[Tensor]:
        """Return the pixels [B,C,h,w] of the proposals and of every decoder layer.

        ``size`` is (h, w).
        """
        tokens = memory.levels(memory.tokens)[0].permute(0, 3, 1, 2)
        pixels = [F.interpolate(tokens, size, mode="bilinear", align_corners=False)]
        for block in self.blocks:
            pixels.append(run_layer(block, pixels[-1], recompute=self.recompute and self.training))
        return pixels
